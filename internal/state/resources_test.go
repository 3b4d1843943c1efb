package state

import (
	"encoding/json"
	"testing"

	"github.com/urun-dev/urun/internal/spec"
)

func TestAnUpdateReplacesWhatItNames(t *testing.T) {
	parse := func(o spec.ResourceOptions) (r string) {
		old, err := spec.ParseResources(spec.ResourceOptions{Memory: "50m", CPUs: "0.5", CPUSet: "0", Hugetlb: []string{"2MB:4m"}, MemoryHigh: "40m"}, 4, spec.System{})
		if err != nil {
			t.Fatal(err)
		}
		change, err := spec.ParseResources(o, 4, spec.System{})
		if err != nil {
			t.Fatal(err)
		}
		raw, err := json.Marshal(mergeResources(old, change))
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	for _, c := range []struct {
		o    spec.ResourceOptions
		want string
	}{
		{spec.ResourceOptions{Memory: "100m"}, `{"memory":{"limit":104857600,"swap":209715200},"cpu":{"quota":50000,"period":100000,"cpus":"0"},"hugepageLimits":[{"pageSize":"2MB","limit":4194304}],"unified":{"memory.high":"41943040"}}`},
		{spec.ResourceOptions{Memory: "-1"}, `{"memory":{"limit":-1},"cpu":{"quota":50000,"period":100000,"cpus":"0"},"hugepageLimits":[{"pageSize":"2MB","limit":4194304}],"unified":{"memory.high":"41943040"}}`},
		{spec.ResourceOptions{CPUQuota: -1, CPUShares: 100, Hugetlb: []string{"2MB:8m"}, CgroupConf: []string{"memory.high=max"}}, `{"memory":{"limit":52428800,"swap":104857600},"cpu":{"shares":100,"quota":-1,"period":100000,"cpus":"0"},"hugepageLimits":[{"pageSize":"2MB","limit":8388608}],"unified":{"memory.high":"max"}}`},
	} {
		if got := parse(c.o); got != c.want {
			t.Errorf("%+v:\n%s\nwant\n%s", c.o, got, c.want)
		}
	}
}
