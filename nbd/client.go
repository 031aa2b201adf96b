package nbd

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
)

// Client reads one export of a server. It is safe for concurrent use; requests
// of several goroutines are in flight at the same time on its connection.
type Client struct {
	conn net.Conn
	info exportInfo

	sending sync.Mutex // a request goes out in one piece

	mu      sync.Mutex
	next    uint64
	waiting map[uint64]*call
	dead    error // why no more answers come

	status   sync.Mutex
	extents  []extent // what the server last said, in order
	received chan struct{}
}

// exportInfo is what the handshake told.
type exportInfo struct {
	size       int64
	flags      uint16
	structured bool
	allocation bool
	contextID  uint32
	minBlock   int64
	maxBlock   int64
}

// extent is a part of the disk and whether it is known to be zeroes.
type extent struct {
	offset, length int64
	zero           bool
}

// call is a request that waits for its answer.
type call struct {
	kind    uint16
	offset  int64
	dst     []byte // what a read fills
	length  int64
	got     int64
	extents []extent
	err     error
	done    chan struct{}
}

// maxRead is how much one request asks for: more makes nothing faster, and
// smaller requests of several goroutines overtake each other.
const maxRead = 4 << 20

// Dial connects to an export of a server. network is "tcp" or "unix"; export
// may be empty for the server's default one. With a configuration the
// connection is encrypted or fails. ctx bounds connecting only; Close ends
// reads that wait.
func Dial(ctx context.Context, network, address, export string, config *tls.Config) (*Client, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, fmt.Errorf("connect to nbd server: %w", err)
	}
	if config != nil && config.ServerName == "" && !config.InsecureSkipVerify {
		config = config.Clone()
		if host, _, err := net.SplitHostPort(address); err == nil {
			config.ServerName = host
		}
	}
	c, err := NewClient(ctx, conn, export, config)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return c, nil
}

// NewClient speaks with a server on a connection that is there already, and
// owns it from then on where no error is returned.
func NewClient(ctx context.Context, conn net.Conn, export string, config *tls.Config) (*Client, error) {
	// Who gives up waiting must not hang in the handshake.
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	conn, info, err := clientHandshake(conn, export, config)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, fmt.Errorf("open nbd export %q: %w", export, errors.Join(ctx.Err(), err))
	}
	c := &Client{conn: conn, info: info, waiting: map[uint64]*call{}, received: make(chan struct{})}
	go c.receive()
	return c, nil
}

// Size of the export in bytes.
func (c *Client) Size() int64 { return c.info.size }

// Close says goodbye and ends the connection; reads that wait fail.
func (c *Client) Close() error {
	c.mu.Lock()
	first := c.dead == nil
	if first {
		c.dead = ErrClosed
	}
	c.mu.Unlock()
	if first && c.sending.TryLock() { // who is stuck sending needs no goodbye
		var h [requestHeader]byte
		request{kind: cmdDisc}.put(&h)
		_, _ = c.conn.Write(h[:])
		c.sending.Unlock()
	}
	err := c.conn.Close()
	<-c.received
	if !first || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// ReadAt reads len(p) bytes at off; io.EOF where the disk ends before.
func (c *Client) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("read from nbd server: negative offset")
	}
	if off >= c.info.size {
		return 0, io.EOF
	}
	var short error
	if left := c.info.size - off; int64(len(p)) > left {
		p, short = p[:left], io.EOF
	}
	for n := 0; n < len(p); {
		step := min(len(p)-n, int(c.step()))
		if err := c.read(p[n:n+step], off+int64(n)); err != nil {
			return n, fmt.Errorf("read from nbd server at %d: %w", off+int64(n), err)
		}
		n += step
	}
	return len(p), short
}

// step is how much one request reads: a multiple of the server's smallest block.
func (c *Client) step() int64 {
	n := min(maxRead, c.info.maxBlock)
	return max(n-n%c.info.minBlock, c.info.minBlock)
}

// read asks for one request's worth. Servers may insist on whole blocks.
func (c *Client) read(p []byte, off int64) error {
	b := c.info.minBlock
	from, to := off-off%b, (off+int64(len(p))+b-1)/b*b
	if from == off && to == off+int64(len(p)) || to > c.info.size {
		return c.do(&call{kind: cmdRead, offset: off, dst: p, length: int64(len(p))}, 0)
	}
	for at := from; at < to; at += c.step() {
		whole := make([]byte, min(c.step(), to-at))
		if err := c.do(&call{kind: cmdRead, offset: at, dst: whole, length: int64(len(whole))}, 0); err != nil {
			return err
		}
		// Of [at, at+len) the part in [off, off+len(p)) was asked for.
		lo, hi := max(at, off), min(at+int64(len(whole)), off+int64(len(p)))
		copy(p[lo-off:hi-off], whole[lo-at:])
	}
	return nil
}

// NextData returns the next range at or behind off that may hold data; what
// lies between reads as zeroes. io.EOF when nothing follows. A server that
// does not tell has data everywhere.
func (c *Client) NextData(off int64) (offset, length int64, err error) {
	c.status.Lock()
	defer c.status.Unlock()
	for off = max(off, 0); off < c.info.size; {
		if !c.info.allocation {
			return off, c.info.size - off, nil
		}
		e, known := c.known(off)
		if !known {
			if err := c.askStatus(off); err != nil {
				return 0, 0, fmt.Errorf("ask nbd server for holes at %d: %w", off, err)
			}
			continue
		}
		if !e.zero {
			return off, e.offset + e.length - off, nil
		}
		off = e.offset + e.length
	}
	return 0, 0, io.EOF
}

// known finds off in the server's last answer.
func (c *Client) known(off int64) (extent, bool) {
	// In order, and mostly asked in order: what is behind is never asked again.
	for i, e := range c.extents {
		if off >= e.offset && off < e.offset+e.length {
			c.extents = c.extents[i:]
			return e, true
		}
	}
	return extent{}, false
}

// maxStatus is the range of one question, a multiple of every block size.
const maxStatus = 1 << 30

func (c *Client) askStatus(off int64) error {
	from := off - off%c.info.minBlock
	q := &call{kind: cmdStatus, offset: from, length: min(maxStatus, c.info.size-from)}
	if err := c.do(q, 0); err != nil {
		return err
	}
	c.extents = q.extents
	if _, ok := c.known(off); !ok { // an answer must say something, or we ask for ever
		return fmt.Errorf("block status does not begin where it was asked for: %w", ErrProtocol)
	}
	return nil
}

// do sends a request and waits for its answer.
func (c *Client) do(q *call, flags uint16) error {
	q.done = make(chan struct{})
	c.mu.Lock()
	if c.dead != nil {
		c.mu.Unlock()
		return c.dead
	}
	c.next++
	cookie := c.next
	c.waiting[cookie] = q
	c.mu.Unlock()
	var h [requestHeader]byte
	request{flags: flags, kind: q.kind, cookie: cookie, offset: uint64(q.offset), length: uint32(q.length)}.put(&h)
	c.sending.Lock()
	_, err := c.conn.Write(h[:])
	c.sending.Unlock()
	if err != nil {
		_ = c.conn.Close() // whatever was sent of it; receive ends then, and with it this request
	}
	<-q.done
	return q.err
}

// fail ends every request that waits.
func (c *Client) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dead == nil {
		c.dead = fmt.Errorf("%w: %w", ErrClosed, err)
	}
	for cookie, q := range c.waiting {
		q.err = c.dead
		close(q.done)
		delete(c.waiting, cookie)
	}
}

// receive hands answers to the requests until the connection ends. It alone
// writes into a request's buffer, and lets go of it before done is closed.
func (c *Client) receive() {
	defer close(c.received)
	r := bufio.NewReaderSize(c.conn, 64<<10)
	for {
		if err := c.answer(r); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			_ = c.conn.Close()
			c.fail(err)
			return
		}
	}
}

func (c *Client) find(cookie uint64) (*call, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	q := c.waiting[cookie]
	if q == nil {
		return nil, fmt.Errorf("an answer that nobody waits for: %w", ErrProtocol)
	}
	return q, nil
}

// finish ends a request. The server has the last word only where it said enough.
func (c *Client) finish(cookie uint64, q *call) {
	if q.err == nil && q.kind == cmdRead && q.got != q.length {
		q.err = fmt.Errorf("%d of %d bytes came: %w", q.got, q.length, ErrProtocol)
	}
	c.mu.Lock()
	delete(c.waiting, cookie)
	c.mu.Unlock()
	close(q.done)
}

func (c *Client) answer(r *bufio.Reader) error {
	var h [structuredHeader]byte
	if _, err := io.ReadFull(r, h[:simpleHeader]); err != nil {
		return err
	}
	cookie := be.Uint64(h[8:])
	switch be.Uint32(h[:]) {
	case magicSimple:
		q, err := c.find(cookie)
		if err != nil {
			return err
		}
		if n := be.Uint32(h[4:]); n != 0 {
			q.err = errno(n)
		} else if q.kind == cmdRead {
			if c.info.structured {
				return fmt.Errorf("simple reply to a read: %w", ErrProtocol)
			}
			if _, err := io.ReadFull(r, q.dst); err != nil {
				return err
			}
			q.got = q.length
		}
		c.finish(cookie, q)
		return nil
	case magicStructured:
		if !c.info.structured {
			return fmt.Errorf("structured reply without being asked: %w", ErrProtocol)
		}
		if _, err := io.ReadFull(r, h[simpleHeader:]); err != nil {
			return err
		}
		q, err := c.find(cookie)
		if err != nil {
			return err
		}
		if err := c.chunk(r, q, be.Uint16(h[6:]), int64(be.Uint32(h[16:]))); err != nil {
			return err
		}
		if be.Uint16(h[4:])&chunkFlagDone != 0 {
			c.finish(cookie, q)
		}
		return nil
	}
	return fmt.Errorf("reply magic is wrong: %w", ErrProtocol)
}

// chunk reads one chunk of n bytes of a structured reply.
func (c *Client) chunk(r *bufio.Reader, q *call, kind uint16, n int64) error {
	wrong := fmt.Errorf("chunk of kind %#x and %d bytes does not answer the request: %w", kind, n, ErrProtocol)
	var p [12]byte
	switch {
	case kind == chunkNone && n == 0:
		return nil
	case kind == chunkData && n > 8 && q.kind == cmdRead:
		if _, err := io.ReadFull(r, p[:8]); err != nil {
			return err
		}
		dst, ok := q.part(be.Uint64(p[:]), n-8)
		if !ok {
			return wrong
		}
		_, err := io.ReadFull(r, dst)
		return err
	case kind == chunkHole && n == 12 && q.kind == cmdRead:
		if _, err := io.ReadFull(r, p[:12]); err != nil {
			return err
		}
		dst, ok := q.part(be.Uint64(p[:]), int64(be.Uint32(p[8:])))
		if !ok {
			return wrong
		}
		clear(dst)
		return nil
	case kind == chunkStatus && q.kind == cmdStatus && n >= 12 && n%8 == 4 && n <= 4+8*maxClientExtents:
		return c.statusChunk(r, q, (n-4)/8)
	case kind >= 1<<15:
		if n < 6 || n > 6+MaxName+8 {
			return wrong
		}
		if _, err := io.ReadFull(r, p[:6]); err != nil {
			return err
		}
		if q.err == nil {
			q.err = errno(be.Uint32(p[:]))
		}
		return discard(r, n-6) // the message is for people, and is not ours to trust
	}
	return wrong
}

// part is where n bytes at off of the disk go, if they were asked for and did
// not come yet.
func (q *call) part(off uint64, n int64) ([]byte, bool) {
	at := int64(off - uint64(q.offset))
	if off < uint64(q.offset) || at < 0 || at > q.length || n > q.length-at || n > q.length-q.got {
		return nil, false
	}
	q.got += n
	return q.dst[at : at+n], true
}

// statusChunk reads count extents. Behind what was asked for they say nothing.
func (c *Client) statusChunk(r *bufio.Reader, q *call, count int64) error {
	var p [8]byte
	if _, err := io.ReadFull(r, p[:4]); err != nil {
		return err
	}
	ours := be.Uint32(p[:]) == c.info.contextID && q.extents == nil
	at, end := q.offset, q.offset+q.length
	for range count {
		if _, err := io.ReadFull(r, p[:]); err != nil {
			return err
		}
		if !ours || at >= end {
			continue
		}
		n := min(int64(be.Uint32(p[:])), end-at)
		if n == 0 {
			return fmt.Errorf("block status of no bytes: %w", ErrProtocol)
		}
		zero := be.Uint32(p[4:])&statusZero != 0
		if k := len(q.extents); k > 0 && q.extents[k-1].zero == zero {
			q.extents[k-1].length += n
		} else {
			q.extents = append(q.extents, extent{offset: at, length: n, zero: zero})
		}
		at += n
	}
	return nil
}
