package nbd

import (
	"bytes"
	"context"
	"io"
	"net"
	"testing"
	"time"
)

// scripted is a connection on which the other side said everything already.
type scripted struct {
	in  *bytes.Reader
	out int
}

func (s *scripted) Read(p []byte) (int, error) { return s.in.Read(p) }
func (s *scripted) Write(p []byte) (int, error) {
	s.out += len(p) // sends are serialised
	return len(p), nil
}
func (s *scripted) Close() error        { return nil }
func (s *scripted) LocalAddr() net.Addr { return &net.UnixAddr{Name: "here", Net: "unix"} }

func (s *scripted) RemoteAddr() net.Addr             { return &net.UnixAddr{Name: "there", Net: "unix"} }
func (s *scripted) SetDeadline(time.Time) error      { return nil }
func (s *scripted) SetReadDeadline(time.Time) error  { return nil }
func (s *scripted) SetWriteDeadline(time.Time) error { return nil }

func say(parts ...any) []byte {
	var p []byte
	for _, x := range parts {
		switch x := x.(type) {
		case uint16:
			p = be.AppendUint16(p, x)
		case uint32:
			p = be.AppendUint32(p, x)
		case uint64:
			p = be.AppendUint64(p, x)
		case string:
			p = append(p, x...)
		case []byte:
			p = append(p, x...)
		}
	}
	return p
}

func sayOption(opt uint32, data []byte) []byte {
	return say(uint64(magicOption), opt, uint32(len(data)), data)
}

func sayRequest(q request) []byte {
	var h [requestHeader]byte
	q.put(&h)
	return h[:]
}

func FuzzOptions(f *testing.F) {
	f.Add(infoRequest{"vda", []uint16{infoBlockSize, infoName}}.bytes())
	f.Add(metaRequest{"vda", []string{allocation, "base:"}}.bytes())
	f.Add(say(uint32(0xffffffff), uint16(0xffff)))
	f.Add(say(uint32(0), uint32(0xffffffff)))
	f.Fuzz(func(t *testing.T, p []byte) {
		if r, ok := parseInfoRequest(p); ok && !bytes.Equal(r.bytes(), p) {
			t.Errorf("%x comes back as %x", p, r.bytes())
		}
		if r, ok := parseMetaRequest(p); ok && !bytes.Equal(r.bytes(), p) {
			t.Errorf("%x comes back as %x", p, r.bytes())
		}
	})
}

// FuzzSession is a whole connection: the handshake and requests behind it.
func FuzzSession(f *testing.F) {
	hello := say(uint32(flagFixedNewstyle | flagNoZeroes))
	agreed := say(hello, sayOption(optStructuredReply, nil),
		sayOption(optSetMetaContext, metaRequest{"vda", []string{allocation}}.bytes()),
		sayOption(optGo, infoRequest{"vda", []uint16{infoBlockSize, infoDescription}}.bytes()))
	f.Add(say(hello, sayOption(optList, nil), sayOption(optAbort, nil)))
	f.Add(say(hello, sayOption(optStartTLS, nil), sayOption(99, []byte("x"))))
	f.Add(say(hello, sayOption(optExportName, []byte("vda")), sayRequest(request{kind: cmdRead, offset: 5, length: 100})))
	f.Add(say(agreed,
		sayRequest(request{kind: cmdRead, length: 1 << 20}),
		sayRequest(request{kind: cmdRead, flags: cmdFlagDF, offset: 3, length: 5000}),
		sayRequest(request{kind: cmdWrite, offset: 10, length: 3}), "abc",
		sayRequest(request{kind: cmdStatus, length: 1 << 20}),
		sayRequest(request{kind: cmdZeroes, offset: 10, length: 3}),
		sayRequest(request{kind: cmdTrim, flags: cmdFlagFUA, offset: 10, length: 3}),
		sayRequest(request{kind: cmdFlush}), sayRequest(request{kind: cmdCache, length: 9}),
		sayRequest(request{kind: cmdDisc})))
	f.Add(say(agreed, sayRequest(request{kind: cmdWrite, offset: 1, length: 100 << 10}), make([]byte, 100<<10)))
	f.Add(say(agreed, sayRequest(request{kind: cmdStatus, offset: 1<<64 - 1, length: 0xffffffff})))
	f.Fuzz(func(t *testing.T, p []byte) {
		m := patchy(64 << 10)
		s, err := NewServer(Config{Exports: []Export{{Name: "vda", Description: "d", Disk: m, Writer: m}}})
		if err != nil {
			t.Fatal(err)
		}
		_ = s.ServeConn(context.Background(), &scripted{in: bytes.NewReader(p)})
	})
}

// FuzzClient is a client against a server that says anything.
func FuzzClient(f *testing.F) {
	reply := func(opt, kind uint32, data []byte) []byte {
		return say(uint64(magicOptReply), opt, kind, uint32(len(data)), data)
	}
	head := say(uint64(magicInit), uint64(magicOption), uint16(flagFixedNewstyle|flagNoZeroes))
	agreed := say(head, reply(optStructuredReply, repAck, nil),
		reply(optSetMetaContext, repMetaContext, say(uint32(7), allocation)), reply(optSetMetaContext, repAck, nil),
		reply(optGo, repInfo, say(uint16(infoExport), uint64(16384), uint16(1))),
		reply(optGo, repInfo, say(uint16(infoBlockSize), uint32(512), uint32(4096), uint32(1<<20))),
		reply(optGo, repAck, nil))
	chunk := func(cookie uint64, flags, kind uint16, data []byte) []byte {
		return say(uint32(magicStructured), flags, kind, cookie, uint32(len(data)), data)
	}
	f.Add(say(agreed,
		chunk(1, 1, chunkStatus, say(uint32(7), uint32(4096), uint32(3), uint32(8192), uint32(0))),
		chunk(2, 0, chunkHole, say(uint64(0), uint32(12288))),
		chunk(2, 1, chunkData, say(uint64(12288), make([]byte, 4096)))))
	f.Add(say(agreed, chunk(1, 1, chunkError, say(uint32(5), uint16(2), "no"))))
	f.Add(say(head, reply(optStructuredReply, repErrUnsupported, nil),
		reply(optGo, repInfo, say(uint16(infoExport), uint64(1<<62), uint16(1))), reply(optGo, repAck, nil),
		uint32(magicSimple), uint32(0), uint64(1), make([]byte, 16384)))
	f.Fuzz(func(_ *testing.T, p []byte) {
		c, err := NewClient(context.Background(), &scripted{in: bytes.NewReader(p)}, "vda", nil)
		if err != nil {
			return
		}
		_, _, _ = c.NextData(0)
		buf := make([]byte, 16384)
		if n, err := c.ReadAt(buf, 0); n > len(buf) || n < len(buf) && err == nil {
			panic("short read without an error")
		}
		_, err = c.ReadAt(buf[:10], c.Size()-5)
		if err == nil && c.Size() >= 5 {
			panic("read over the end without " + io.EOF.Error())
		}
		_ = c.Close()
	})
}
