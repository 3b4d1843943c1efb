package spec

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"github.com/docker/go-units"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// blockIO parses the weight and the limits of devices.
func (p *resourceParser) blockIO() error {
	io := &specs.LinuxBlockIO{}
	if w := p.o.BlkioWeight; w != 0 {
		if w < 10 || w > 1000 {
			return fmt.Errorf("--blkio-weight %d: must be from 10 to 1000", w)
		}
		if p.o.IOWeight != 0 {
			return conflict("--blkio-weight and --io-weight are two units for one thing")
		}
		io.Weight = &w
	}
	if w := p.o.IOWeight; w != 0 {
		if w > maxWeight {
			return fmt.Errorf("--io-weight %d: must be from 1 to %d", w, maxWeight)
		}
		p.put("io.weight", "default "+strconv.FormatUint(w, 10))
	}
	for _, f := range []struct {
		flag   string
		values []string
		into   *[]specs.LinuxThrottleDevice
		bytes  bool
	}{
		{"--device-read-bps", p.o.DeviceReadBPS, &io.ThrottleReadBpsDevice, true},
		{"--device-write-bps", p.o.DeviceWriteBPS, &io.ThrottleWriteBpsDevice, true},
		{"--device-read-iops", p.o.DeviceReadIOPS, &io.ThrottleReadIOPSDevice, false},
		{"--device-write-iops", p.o.DeviceWriteIOPS, &io.ThrottleWriteIOPSDevice, false},
	} {
		for _, v := range f.values {
			d, err := p.throttle(f.flag, v, f.bytes)
			if err != nil {
				return err
			}
			*f.into = append(*f.into, d)
		}
	}
	if io.Weight != nil || io.ThrottleReadBpsDevice != nil || io.ThrottleWriteBpsDevice != nil || io.ThrottleReadIOPSDevice != nil || io.ThrottleWriteIOPSDevice != nil {
		p.r.BlockIO = io
	}
	return nil
}

// throttle parses DEVICE:RATE.
func (p *resourceParser) throttle(flag, v string, bytes bool) (d specs.LinuxThrottleDevice, err error) {
	path, rate, ok := strings.Cut(v, ":")
	if !ok || !strings.HasPrefix(path, "/dev/") {
		return d, fmt.Errorf("%s %s: want DEVICE:RATE such as /dev/sda:10mb", flag, v)
	}
	if bytes {
		n, err := units.RAMInBytes(rate)
		if err != nil || n <= 0 {
			return d, fmt.Errorf("%s %s: %q is not a rate such as 10mb", flag, v, rate)
		}
		d.Rate = uint64(n)
	} else if d.Rate, err = strconv.ParseUint(rate, 10, 32); err != nil || d.Rate == 0 {
		return d, fmt.Errorf("%s %s: %q is not a number of operations a second", flag, v, rate)
	}
	fi, err := p.host.Stat(path)
	if err != nil {
		return d, fmt.Errorf("%s: %w", flag, err)
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok || fi.Mode()&os.ModeDevice == 0 || fi.Mode()&os.ModeCharDevice != 0 {
		return d, fmt.Errorf("%s: %s is not a block device", flag, path)
	}
	d.Major, d.Minor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	return d, nil
}

// hugetlb parses PAGESIZE:BYTES such as 2MB:64m.
func (p *resourceParser) hugetlb() error {
	for _, v := range p.o.Hugetlb {
		size, limit, ok := strings.Cut(v, ":")
		number := strings.TrimRight(size, "KMGB")
		if _, err := strconv.ParseUint(number, 10, 32); !ok || err != nil || !strings.HasSuffix(size, "B") {
			return fmt.Errorf("--hugetlb %s: want PAGESIZE:SIZE such as 2MB:64m", v)
		}
		n, err := units.RAMInBytes(limit)
		if err != nil || n < 0 {
			return fmt.Errorf("--hugetlb %s: %q is not a size such as 64m", v, limit)
		}
		p.r.HugepageLimits = append(p.r.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: size, Limit: uint64(n)})
	}
	return nil
}

// unified parses KEY=VALUE, a file of the container's cgroup and what is written to it.
func (p *resourceParser) unified() error {
	for _, v := range p.o.CgroupConf {
		key, value, ok := strings.Cut(v, "=")
		controller, _, dotted := strings.Cut(key, ".")
		if !ok || !dotted || controller == "" || value == "" || strings.ContainsAny(key, "/ ") {
			return fmt.Errorf("--cgroup-conf %s: want KEY=VALUE such as memory.high=1073741824", v)
		}
		if controller == "cgroup" {
			return fmt.Errorf("--cgroup-conf %s: the files cgroup.* are not limits", v)
		}
		p.put(key, value)
	}
	return nil
}
