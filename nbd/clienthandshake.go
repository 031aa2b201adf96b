package nbd

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
)

// optionReply is one reply to an option.
type optionReply struct {
	kind uint32
	data []byte
}

// clientHandshake agrees on an export. What comes back is the connection to go
// on with: an encrypted one where there is a configuration.
func clientHandshake(conn net.Conn, export string, config *tls.Config) (net.Conn, exportInfo, error) {
	info := exportInfo{minBlock: 1, maxBlock: MaxRequest}
	if len(export) > MaxName {
		return conn, info, fmt.Errorf("name is longer than %d bytes: %w", MaxName, ErrUnknownExport)
	}
	var h [18]byte
	if _, err := io.ReadFull(conn, h[:]); err != nil {
		return conn, info, err
	}
	if be.Uint64(h[:]) != magicInit || be.Uint64(h[8:]) != magicOption || be.Uint16(h[16:])&flagFixedNewstyle == 0 {
		return conn, info, fmt.Errorf("not a server of the fixed newstyle: %w", ErrProtocol)
	}
	flags := uint32(be.Uint16(h[16:]) & (flagFixedNewstyle | flagNoZeroes))
	if _, err := conn.Write(be.AppendUint32(nil, flags)); err != nil {
		return conn, info, err
	}
	if config != nil {
		if err := simpleOption(conn, optStartTLS, nil); err != nil {
			if errors.Is(err, errRefused) {
				err = fmt.Errorf("%w: %w", ErrNoTLS, err)
			}
			return conn, info, err
		}
		secure := tls.Client(conn, config)
		if err := secure.Handshake(); err != nil {
			return conn, info, err
		}
		conn = secure
	}
	if err := negotiate(conn, export, &info); err != nil {
		return conn, info, err
	}
	switch {
	case info.size < 0:
		return conn, info, fmt.Errorf("size is out of range: %w", ErrProtocol)
	case info.minBlock < 1 || info.minBlock > 64<<10 || info.minBlock&(info.minBlock-1) != 0 || info.maxBlock < info.minBlock:
		return conn, info, fmt.Errorf("block sizes %d and %d make no sense: %w", info.minBlock, info.maxBlock, ErrProtocol)
	}
	return conn, info, nil
}

func negotiate(conn net.Conn, export string, info *exportInfo) error {
	switch err := simpleOption(conn, optStructuredReply, nil); {
	case err == nil:
		info.structured = true
	case !errors.Is(err, errRefused) || errors.Is(err, ErrTLSRequired):
		return err
	}
	if info.structured {
		err := option(conn, optSetMetaContext, metaRequest{export, []string{allocation}}.bytes(), func(r optionReply) error {
			if r.kind == repMetaContext && len(r.data) >= 4 && string(r.data[4:]) == allocation {
				info.allocation, info.contextID = true, be.Uint32(r.data)
			}
			return nil
		})
		if err != nil && !errors.Is(err, errRefused) {
			return err
		}
	}
	found := false
	err := option(conn, optGo, infoRequest{export, []uint16{infoBlockSize}}.bytes(), func(r optionReply) error {
		if r.kind != repInfo || len(r.data) < 2 {
			return nil
		}
		switch c := (cutter{p: r.data[2:]}); be.Uint16(r.data) {
		case infoExport:
			if p := c.take(10); p != nil {
				info.size, info.flags, found = int64(be.Uint64(p)), be.Uint16(p[8:]), true
			}
		case infoBlockSize:
			if p := c.take(12); p != nil {
				info.minBlock, info.maxBlock = int64(be.Uint32(p)), min(int64(be.Uint32(p[8:])), MaxRequest)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if !found {
		return fmt.Errorf("the server did not say how large the export is: %w", ErrProtocol)
	}
	return nil
}

// errRefused says that the server knows the option, or not, and does not want it.
var errRefused = errors.New("the server refused")

func refusal(kind uint32) error {
	switch kind {
	case repErrUnknown:
		return fmt.Errorf("%w: %w", errRefused, ErrUnknownExport)
	case repErrTLSRequired:
		return fmt.Errorf("%w: %w", errRefused, ErrTLSRequired)
	}
	return fmt.Errorf("%w (reply %#x)", errRefused, kind)
}

func simpleOption(conn net.Conn, opt uint32, data []byte) error {
	return option(conn, opt, data, func(optionReply) error { return nil })
}

// option sends an option and gives its replies to each, but the last: an error
// is returned.
func option(conn net.Conn, opt uint32, data []byte, each func(optionReply) error) error {
	p := be.AppendUint64(nil, magicOption)
	p = be.AppendUint32(p, opt)
	p = be.AppendUint32(p, uint32(len(data)))
	if _, err := conn.Write(append(p, data...)); err != nil {
		return err
	}
	for range maxOptions {
		r, err := readOptionReply(conn, opt)
		if err != nil {
			return err
		}
		switch {
		case r.kind == repAck:
			return nil
		case r.kind&repError != 0:
			return refusal(r.kind)
		}
		if err := each(r); err != nil {
			return err
		}
	}
	return fmt.Errorf("replies to option %d without an end: %w", opt, ErrProtocol)
}

func readOptionReply(r io.Reader, opt uint32) (optionReply, error) {
	var h [20]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return optionReply{}, err
	}
	n := be.Uint32(h[16:])
	if be.Uint64(h[:]) != magicOptReply || be.Uint32(h[8:]) != opt || n > maxOption {
		return optionReply{}, fmt.Errorf("reply to option %d is malformed: %w", opt, ErrProtocol)
	}
	p := make([]byte, n)
	if _, err := io.ReadFull(r, p); err != nil {
		return optionReply{}, err
	}
	return optionReply{kind: be.Uint32(h[12:]), data: p}, nil
}
