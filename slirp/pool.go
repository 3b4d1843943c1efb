package slirp

import "sync"

// bytePool hands out byte slices of one capacity. A pool belongs to a Network, not to the package.
type bytePool struct{ sync.Pool }

func newBytePool(size int) *bytePool {
	return &bytePool{sync.Pool{New: func() any {
		b := make([]byte, size)
		return &b
	}}}
}

func (p *bytePool) get() *[]byte  { return p.Get().(*[]byte) }
func (p *bytePool) put(b *[]byte) { p.Put(b) }
