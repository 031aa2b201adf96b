package nbd

import (
	"errors"
	"fmt"
	"io"
)

// read answers a read: in chunks with holes where replies are structured.
func (s *session) read(x *slot) error {
	q := x.request
	if q.length == 0 {
		return s.done(q)
	}
	buf := x.buf
	if q.length > smallBuffer {
		buf = s.takeBig()
		defer func() { s.big <- buf }()
	} else {
		x.data()
		buf = x.buf
	}
	switch {
	case !s.structured:
		return s.readSimple(q, buf)
	case q.flags&cmdFlagDF != 0:
		return s.readWhole(q, buf)
	}
	return s.readChunks(q, buf)
}

// fill reads from the export; short is an error.
func (s *session) fill(p []byte, off int64) error {
	n, err := s.export.Disk.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// readSimple has one header before all of the data, and so must know that all
// of it can be read before it sends any.
func (s *session) readSimple(q request, buf []byte) error {
	room := int64(len(buf) - headRoom)
	off, end := int64(q.offset), int64(q.offset)+int64(q.length)
	if int64(q.length) <= room {
		p := buf[:simpleHeader+int(q.length)]
		if err := s.fill(p[simpleHeader:], off); err != nil {
			return s.fail(q, s.number(q, err))
		}
		putSimple(p, q.cookie, 0)
		return s.send(p)
	}
	for at := off; at < end; at += room {
		if err := s.fill(buf[:min(room, end-at)], at); err != nil {
			return s.fail(q, s.number(q, err))
		}
	}
	s.sending.Lock() // nothing may come between the header and the last byte
	defer s.sending.Unlock()
	var h [simpleHeader]byte
	putSimple(h[:], q.cookie, 0)
	if s.broken == nil {
		_, s.broken = s.conn.Write(h[:])
	}
	for at := off; at < end && s.broken == nil; at += room {
		p := buf[:min(room, end-at)]
		if err := s.fill(p, at); err != nil {
			s.broken = fmt.Errorf("read again what could be read before: %w", err)
			break
		}
		_, s.broken = s.conn.Write(p)
	}
	return s.broken
}

// readWhole answers in one chunk.
func (s *session) readWhole(q request, buf []byte) error {
	p := buf[:headRoom+int(q.length)]
	if err := s.fill(p[headRoom:], int64(q.offset)); err != nil {
		return s.failAt(q, s.number(q, err), int64(q.offset))
	}
	return s.dataChunk(q, p, int64(q.offset), true)
}

// dataChunk sends what lies in p behind the room for its header.
func (s *session) dataChunk(q request, p []byte, off int64, last bool) error {
	putChunk(p, q.cookie, doneFlag(last), chunkData, uint32(len(p)-structuredHeader))
	be.PutUint64(p[structuredHeader:], uint64(off))
	return s.send(p)
}

func doneFlag(last bool) uint16 {
	if last {
		return chunkFlagDone
	}
	return 0
}

func (s *session) readChunks(q request, buf []byte) error {
	room := int64(len(buf) - headRoom)
	at, end := int64(q.offset), int64(q.offset)+int64(q.length)
	for at < end {
		data, n, err := s.nextData(at, end)
		if err != nil {
			return s.failAt(q, s.number(q, err), at)
		}
		if data > at {
			if err := s.holeChunk(q, at, data-at, data == end); err != nil {
				return err
			}
		}
		for at = data; n > 0; {
			p := buf[:headRoom+min(room, n)]
			got := int64(len(p) - headRoom)
			if err := s.fill(p[headRoom:], at); err != nil {
				return s.failAt(q, s.number(q, err), at)
			}
			if err := s.dataChunk(q, p, at, at+got == end); err != nil {
				return err
			}
			at, n = at+got, n-got
		}
	}
	return nil
}

func (s *session) holeChunk(q request, off, n int64, last bool) error {
	p := make([]byte, structuredHeader, structuredHeader+12)
	p = be.AppendUint64(p, uint64(off))
	p = be.AppendUint32(p, uint32(n))
	putChunk(p, q.cookie, doneFlag(last), chunkHole, 12)
	return s.send(p)
}

// nextData is the next data in [at, end): n bytes at data, or end and 0.
func (s *session) nextData(at, end int64) (data, n int64, err error) {
	data, n, err = s.export.Disk.NextData(at)
	switch {
	case errors.Is(err, io.EOF), err == nil && data >= end:
		return end, 0, nil
	case err != nil:
		return 0, 0, err
	case data < at || n <= 0:
		return 0, 0, fmt.Errorf("next data behind %d: %d bytes at %d", at, n, data)
	}
	return data, min(n, end-data), nil
}

// blockStatus tells data from holes. An answer may end early, and does where
// there are very many.
func (s *session) blockStatus(q request) error {
	at, end := int64(q.offset), int64(q.offset)+int64(q.length)
	most := maxStatusExtents
	if q.flags&cmdFlagReqOne != 0 {
		most = 1
	}
	p := make([]byte, structuredHeader, structuredHeader+4+16)
	p = be.AppendUint32(p, allocationID)
	var length, flags uint32
	count := 0
	add := func(n int64, f uint32) { // neighbours of one kind become one extent
		if n == 0 {
			return
		}
		if length > 0 && f != flags {
			p = be.AppendUint32(be.AppendUint32(p, length), flags)
			count, length = count+1, 0
		}
		length, flags = length+uint32(n), f
	}
	for at < end && count < most {
		data, n, err := s.nextData(at, end)
		if err != nil {
			return s.fail(q, s.number(q, err))
		}
		add(data-at, statusHole|statusZero)
		add(n, 0)
		at = data + n
	}
	if count < most {
		p = be.AppendUint32(be.AppendUint32(p, length), flags)
	}
	p = p[:min(len(p), structuredHeader+4+8*most)]
	putChunk(p, q.cookie, chunkFlagDone, chunkStatus, uint32(len(p)-structuredHeader))
	return s.send(p)
}
