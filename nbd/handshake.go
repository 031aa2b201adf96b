package nbd

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
)

// agreement is what the handshake led to.
type agreement struct {
	export     *Export
	structured bool
	allocation bool // the client wants block status
}

// handshake is the server's side of the option haggling. It reads without a
// buffer of its own, so that nothing sent before encryption began is taken for
// something sent after it.
type handshake struct {
	server     *Server
	conn       net.Conn
	secure     bool
	noZeroes   bool
	structured bool
	// context is the export for which the client chose base:allocation.
	context *Export
}

// run ends with an agreement, or without one and without an error where the
// client only looked around.
func (h *handshake) run() (*agreement, error) {
	p := be.AppendUint64(nil, magicInit)
	p = be.AppendUint64(p, magicOption)
	p = be.AppendUint16(p, flagFixedNewstyle|flagNoZeroes)
	if _, err := h.conn.Write(p); err != nil {
		return nil, err
	}
	var b [16]byte
	if _, err := io.ReadFull(h.conn, b[:4]); err != nil {
		return nil, quiet(err)
	}
	flags := be.Uint32(b[:])
	if flags&^(flagFixedNewstyle|flagNoZeroes) != 0 || flags&flagFixedNewstyle == 0 {
		return nil, fmt.Errorf("client flags %#x: %w", flags, ErrProtocol)
	}
	h.noZeroes = flags&flagNoZeroes != 0
	for range maxOptions {
		if _, err := io.ReadFull(h.conn, b[:]); err != nil {
			return nil, quiet(err)
		}
		if be.Uint64(b[:]) != magicOption {
			return nil, fmt.Errorf("option magic is wrong: %w", ErrProtocol)
		}
		opt, n := be.Uint32(b[8:]), be.Uint32(b[12:])
		if n > maxOption {
			return nil, fmt.Errorf("option %d has %d bytes: %w", opt, n, ErrProtocol)
		}
		data := make([]byte, n)
		if _, err := io.ReadFull(h.conn, data); err != nil {
			return nil, err
		}
		agreed, done, err := h.option(opt, data)
		if done || err != nil {
			return agreed, err
		}
	}
	return nil, fmt.Errorf("more than %d options: %w", maxOptions, ErrProtocol)
}

// quiet: a client that leaves between two messages is no error.
func quiet(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

func (h *handshake) option(opt uint32, data []byte) (agreed *agreement, done bool, err error) {
	if h.server.tls != nil && !h.secure {
		switch opt {
		case optStartTLS, optAbort:
		case optExportName:
			return nil, true, fmt.Errorf("client does not encrypt: %w", ErrTLSRequired)
		default:
			return nil, false, h.reply(opt, repErrTLSRequired, []byte("this server wants an encrypted connection"))
		}
	}
	switch opt {
	case optExportName:
		return h.exportName(string(data))
	case optAbort:
		_ = h.reply(opt, repAck, nil) // who leaves need not wait for it
		return nil, true, nil
	case optList:
		return nil, false, h.list(data)
	case optStartTLS:
		return nil, false, h.startTLS(data)
	case optInfo, optGo:
		return h.info(opt, data)
	case optStructuredReply:
		if len(data) != 0 {
			return nil, false, h.reply(opt, repErrInvalid, nil)
		}
		h.structured = true
		return nil, false, h.reply(opt, repAck, nil)
	case optListMetaContext, optSetMetaContext:
		return nil, false, h.metaContext(opt, data)
	}
	return nil, false, h.reply(opt, repErrUnsupported, nil)
}

func (h *handshake) reply(opt, kind uint32, data []byte) error {
	p := be.AppendUint64(nil, magicOptReply)
	p = be.AppendUint32(p, opt)
	p = be.AppendUint32(p, kind)
	p = be.AppendUint32(p, uint32(len(data)))
	_, err := h.conn.Write(append(p, data...))
	return err
}

// exportName is the old way to begin: there is no way to say no but to leave.
func (h *handshake) exportName(name string) (*agreement, bool, error) {
	e, ok := h.server.find(name)
	if !ok {
		return nil, true, fmt.Errorf("client asked for export %q: %w", clean(name), ErrUnknownExport)
	}
	a := h.agree(e)
	p := be.AppendUint64(nil, uint64(e.Disk.Size()))
	p = be.AppendUint16(p, a.flags())
	if !h.noZeroes {
		p = append(p, make([]byte, noZeroesPaddingSize)...)
	}
	_, err := h.conn.Write(p)
	return a, true, err
}

func (h *handshake) agree(e *Export) *agreement {
	return &agreement{export: e, structured: h.structured, allocation: h.structured && h.context == e}
}

// flags are the transmission flags of what was agreed on. All connections
// write to one place, so that several of them see the same: CAN_MULTI_CONN.
func (a *agreement) flags() uint16 {
	f := uint16(transHasFlags | transMultiConn | transFlush | transFUA | transCache)
	if a.structured {
		f |= transDF
	}
	if a.export.Writer == nil {
		return f | transReadOnly
	}
	return f | transTrim | transZeroes | transFastZero
}

func (h *handshake) list(data []byte) error {
	if len(data) != 0 {
		return h.reply(optList, repErrInvalid, nil)
	}
	for _, e := range h.server.exports {
		if err := h.reply(optList, repServer, appendText(nil, e.Name)); err != nil {
			return err
		}
	}
	return h.reply(optList, repAck, nil)
}

func (h *handshake) startTLS(data []byte) error {
	switch {
	case h.server.tls == nil:
		return h.reply(optStartTLS, repErrUnsupported, nil)
	case len(data) != 0 || h.secure:
		return h.reply(optStartTLS, repErrInvalid, nil)
	}
	if err := h.reply(optStartTLS, repAck, nil); err != nil {
		return err
	}
	conn := tls.Server(h.conn, h.server.tls)
	if err := conn.Handshake(); err != nil {
		return fmt.Errorf("begin encryption: %w", err)
	}
	// What was agreed on before could have been somebody else's word.
	h.conn, h.secure, h.structured, h.context = conn, true, false, nil
	return nil
}

func (h *handshake) info(opt uint32, data []byte) (*agreement, bool, error) {
	q, ok := parseInfoRequest(data)
	if !ok {
		return nil, false, h.reply(opt, repErrInvalid, nil)
	}
	e, ok := h.server.find(q.name)
	if !ok {
		return nil, false, h.reply(opt, repErrUnknown, []byte("there is no such export"))
	}
	a := h.agree(e)
	infos := [][]byte{be.AppendUint16(be.AppendUint64(be.AppendUint16(nil, infoExport), uint64(e.Disk.Size())), a.flags())}
	p := be.AppendUint32(be.AppendUint16(nil, infoBlockSize), 1)
	infos = append(infos, be.AppendUint32(be.AppendUint32(p, preferredBlockSize), MaxRequest))
	if slices.Contains(q.asks, infoName) {
		infos = append(infos, append(be.AppendUint16(nil, infoName), e.Name...))
	}
	if slices.Contains(q.asks, infoDescription) && e.Description != "" {
		infos = append(infos, append(be.AppendUint16(nil, infoDescription), e.Description[:min(len(e.Description), MaxName)]...))
	}
	for _, p := range infos {
		if err := h.reply(opt, repInfo, p); err != nil {
			return nil, true, err
		}
	}
	if err := h.reply(opt, repAck, nil); err != nil {
		return nil, true, err
	}
	if opt == optInfo {
		return nil, false, nil
	}
	return a, true, nil
}

func (h *handshake) metaContext(opt uint32, data []byte) error {
	if opt == optSetMetaContext {
		h.context = nil // whatever comes of this one, the last one counts
	}
	q, ok := parseMetaRequest(data)
	if !ok || !h.structured {
		return h.reply(opt, repErrInvalid, nil)
	}
	e, ok := h.server.find(q.name)
	if !ok {
		return h.reply(opt, repErrUnknown, []byte("there is no such export"))
	}
	wanted := opt == optListMetaContext && len(q.queries) == 0
	for _, text := range q.queries {
		wanted = wanted || text == allocation || opt == optListMetaContext && text == "base:"
	}
	if wanted {
		id := uint32(0) // reserved where contexts are only listed
		if opt == optSetMetaContext {
			h.context, id = e, allocationID
		}
		if err := h.reply(opt, repMetaContext, append(be.AppendUint32(nil, id), allocation...)); err != nil {
			return err
		}
	}
	return h.reply(opt, repAck, nil)
}

// clean makes what a client sent fit for a log.
func clean(s string) string {
	s = strings.ToValidUTF8(s, "?")
	if len(s) > 64 {
		s = s[:64] + "…"
	}
	return s
}
