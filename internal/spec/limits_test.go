package spec

import (
	"encoding/json"
	"io/fs"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestLimitsBecomeResources(t *testing.T) {
	for _, c := range []struct {
		name    string
		o       ResourceOptions
		want    string
		limited bool
	}{
		{"nothing", ResourceOptions{}, `{}`, false},
		{"memory, and as much swap", ResourceOptions{Memory: "50m"}, `{"memory":{"limit":52428800,"swap":104857600}}`, true},
		{"memory without swap", ResourceOptions{Memory: "50m", MemorySwap: "50m"}, `{"memory":{"limit":52428800,"swap":52428800}}`, true},
		{"all the swap there is", ResourceOptions{Memory: "50m", MemorySwap: "-1"}, `{"memory":{"limit":52428800,"swap":-1}}`, true},
		{"no limit of memory", ResourceOptions{Memory: "-1"}, `{"memory":{"limit":-1}}`, false},
		{"reservation and high", ResourceOptions{MemoryReservation: "32m", MemoryHigh: "64m"}, `{"memory":{"reservation":33554432},"unified":{"memory.high":"67108864"}}`, true},
		{"half a CPU", ResourceOptions{CPUs: "0.5"}, `{"cpu":{"quota":50000,"period":100000}}`, true},
		{"quota and period", ResourceOptions{CPUQuota: 20000, CPUPeriod: 40000}, `{"cpu":{"quota":20000,"period":40000}}`, true},
		{"no quota", ResourceOptions{CPUQuota: -1}, `{"cpu":{"quota":-1}}`, false},
		{"weights", ResourceOptions{CPUWeight: 50, IOWeight: 200}, `{"unified":{"cpu.weight":"50","io.weight":"default 200"}}`, true},
		{"docker's weights", ResourceOptions{CPUShares: 512, BlkioWeight: 300}, `{"cpu":{"shares":512},"blockIO":{"weight":300}}`, true},
		{"CPUs and memory nodes", ResourceOptions{CPUSet: "0-1", CPUSetMems: "0"}, `{"cpu":{"cpus":"0-1","mems":"0"}}`, true},
		{"processes", ResourceOptions{PidsLimit: ptr(int64(50))}, `{"pids":{"limit":50}}`, true},
		{"any number of processes", ResourceOptions{PidsLimit: ptr(int64(0))}, `{"pids":{"limit":-1}}`, false},
		{"huge pages", ResourceOptions{Hugetlb: []string{"2MB:64m"}}, `{"hugepageLimits":[{"pageSize":"2MB","limit":67108864}]}`, true},
		{"files of the cgroup", ResourceOptions{CgroupConf: []string{"memory.oom.group=1"}}, `{"unified":{"memory.oom.group":"1"}}`, true},
	} {
		r, err := ParseResources(c.o, 4, System{})
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if got, err := json.Marshal(r); err != nil || string(got) != c.want {
			t.Errorf("%s: %s, %v, want %s", c.name, got, err, c.want)
		}
		if Limited(r) != c.limited {
			t.Errorf("%s: limited is %v", c.name, !c.limited)
		}
	}
}

func TestNonsenseLimitsAreRefused(t *testing.T) {
	for _, c := range []struct {
		name string
		o    ResourceOptions
		want string
	}{
		{"too little memory", ResourceOptions{Memory: "1m"}, "minimum memory limit allowed is 6MB"},
		{"swap without memory", ResourceOptions{MemorySwap: "1g"}, "always set the memory limit"},
		{"swap below memory", ResourceOptions{Memory: "1g", MemorySwap: "512m"}, "larger than the memory limit"},
		{"reservation above memory", ResourceOptions{Memory: "512m", MemoryReservation: "1g"}, "reservation"},
		{"slowed down after the end", ResourceOptions{Memory: "512m", MemoryHigh: "1g"}, "--memory-high"},
		{"memory of words", ResourceOptions{Memory: "much"}, "--memory much"},
		{"memory in apples", ResourceOptions{Memory: "5apples"}, "--memory 5apples"},
		{"negative memory", ResourceOptions{Memory: "-5m"}, "--memory -5m"},
		{"more CPUs than there are", ResourceOptions{CPUs: "5"}, "range of CPUs is from 0.01 to 4.00"},
		{"hardly a CPU", ResourceOptions{CPUs: "0.001"}, "range of CPUs"},
		{"not a number of CPUs", ResourceOptions{CPUs: "NaN"}, "not a number"},
		{"cpus and quota", ResourceOptions{CPUs: "1", CPUQuota: 1000}, "conflicting options: --cpus"},
		{"short quota", ResourceOptions{CPUQuota: 999}, "--cpu-quota"},
		{"long period", ResourceOptions{CPUPeriod: 1000001}, "--cpu-period"},
		{"shares of one", ResourceOptions{CPUShares: 1}, "--cpu-shares"},
		{"negative shares", ResourceOptions{CPUShares: -5}, "--cpu-shares"},
		{"heavy weight", ResourceOptions{CPUWeight: 10001}, "--cpu-weight"},
		{"two weights", ResourceOptions{CPUWeight: 10, CPUShares: 10}, "conflicting options"},
		{"CPU that is not there", ResourceOptions{CPUSet: "0-4"}, "not available"},
		{"CPU list of words", ResourceOptions{CPUSet: "all"}, "--cpuset-cpus"},
		{"memory nodes of words", ResourceOptions{CPUSetMems: "x"}, "--cpuset-mems"},
		{"light blkio weight", ResourceOptions{BlkioWeight: 5}, "--blkio-weight"},
		{"heavy io weight", ResourceOptions{IOWeight: 20000}, "--io-weight"},
		{"rate without a device", ResourceOptions{DeviceReadBPS: []string{"10mb"}}, "--device-read-bps 10mb"},
		{"rate of words", ResourceOptions{DeviceWriteBPS: []string{"/dev/sda:fast"}}, `"fast" is not a rate`},
		{"operations in megabytes", ResourceOptions{DeviceReadIOPS: []string{"/dev/sda:1mb"}}, "not a number of operations"},
		{"device that is not there", ResourceOptions{DeviceWriteIOPS: []string{"/dev/nowhere:10"}}, "--device-write-iops"},
		{"not a block device", ResourceOptions{DeviceReadBPS: []string{"/dev/null:1mb"}}, "not a block device"},
		{"fewer than no processes", ResourceOptions{PidsLimit: ptr(int64(-7))}, "--pids-limit -7"},
		{"huge pages without a limit", ResourceOptions{Hugetlb: []string{"2MB"}}, "--hugetlb 2MB"},
		{"file without a value", ResourceOptions{CgroupConf: []string{"memory.high"}}, "--cgroup-conf"},
		{"file that kills", ResourceOptions{CgroupConf: []string{"cgroup.kill=1"}}, "cgroup.*"},
		{"file elsewhere", ResourceOptions{CgroupConf: []string{"../memory.max=1"}}, "--cgroup-conf"},
	} {
		_, err := ParseResources(c.o, 4, System{})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

func TestTheCgroupIsWritableWhereThatWasAskedFor(t *testing.T) {
	for _, c := range []struct {
		opt  Options
		want string
	}{
		{Options{}, "ro"},
		{Options{Privileged: true}, "rw"},
		{Options{SecurityOpts: []string{"unmask=/sys/fs/cgroup"}}, "rw"},
		{Options{SecurityOpts: []string{"unmask=ALL"}}, "rw"},
		{Options{SecurityOpts: []string{"unmask=/proc/acpi"}}, "ro"},
	} {
		built, err := Build(c.opt, testFacts())
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range built.Spec.Mounts {
			if m.Destination == "/sys/fs/cgroup" && !slices.Contains(m.Options, c.want) {
				t.Errorf("%+v: %v, want %s", c.opt.SecurityOpts, m.Options, c.want)
			}
		}
	}
}

// disk is a machine whose every file is the block device 259:3.
type disk struct{ System }

func (disk) Stat(string) (fs.FileInfo, error) { return diskInfo{}, nil }

type diskInfo struct{ fs.FileInfo }

func (diskInfo) Mode() fs.FileMode { return fs.ModeDevice | 0o660 }
func (diskInfo) Sys() any          { return &syscall.Stat_t{Rdev: unix.Mkdev(259, 3)} }

func TestDevicesAreNamedByTheirNumbers(t *testing.T) {
	r, err := ParseResources(ResourceOptions{DeviceReadBPS: []string{"/dev/disk:1mb"}, DeviceWriteIOPS: []string{"/dev/disk:100"}}, 0, disk{})
	if err != nil {
		t.Fatal(err)
	}
	want := `{"blockIO":{"throttleReadBpsDevice":[{"major":259,"minor":3,"rate":1048576}],"throttleWriteIOPSDevice":[{"major":259,"minor":3,"rate":100}]}}`
	if got, err := json.Marshal(r); err != nil || string(got) != want {
		t.Errorf("%s, %v, want %s", got, err, want)
	}
}
