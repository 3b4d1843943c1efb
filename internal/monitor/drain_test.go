package monitor

import "testing"

func TestParseUnsent(t *testing.T) {
	const head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
	line := func(state, queues string) string {
		return "   0: 6402000A:A0B6 016433C6:14B5 " + state + " " + queues + " 01:00000014 00000000     0        0 0 2 0000000000000000 20 4 0 10 -1\n"
	}
	for _, c := range []struct {
		name, table string
		want        int64
		fails       bool
	}{
		{"nothing", head, 0, false},
		{"empty", "", 0, false},
		{"open, listening, closed by the other side", head + line("01", "000000FF:00000000") + line("0A", "00000000:00000000") + line("08", "00000001:00000000"), 0, false},
		{"closed, with data", head + line("04", "00000100:00000000") + line("01", "00000005:00000000") + line("09", "00000010:00000000"), 0x110, false},
		{"an end alone", head + line("0B", "00000000:00000000"), 1, false},
		{"no number", head + line("04", "x:0"), 0, true},
	} {
		got, err := parseUnsent(c.table)
		if got != c.want || (err != nil) != c.fails {
			t.Errorf("%s: %d, %v", c.name, got, err)
		}
	}
}
