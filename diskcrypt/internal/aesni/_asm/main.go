// Command asm writes aes_amd64.s and its Go declarations: go generate in the
// folder above. It is a module of its own, so that nobody who builds the
// project needs avo.
package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

const lanes = 8 // blocks in flight: what hides the latency of a round

func main() {
	ConstraintExpr("amd64,!purego")
	subWord()
	invMixColumns()
	block("encryptBlock", encrypting)
	block("decryptBlock", decrypting)
	xts("xtsEncrypt", encrypting)
	xts("xtsDecrypt", decrypting)
	cbcEncrypt()
	cbcDecrypt()
	Generate()
}

type direction struct{ round, last func(m, x Op) }

var (
	encrypting = direction{AESENC, AESENCLAST}
	decrypting = direction{AESDEC, AESDECLAST}
)

func at(base Register, i int) Mem { return Mem{Base: base, Disp: 16 * i} }

// pass runs the rounds of a schedule over blocks. rounds is 10, 12 or 14; key
// is clobbered.
func (d direction) pass(name string, blocks []VecPhysical, schedule, rounds Register, key VecPhysical) {
	MOVOU(at(schedule, 0), key)
	for _, b := range blocks {
		PXOR(key, b)
	}
	round := func(i int) {
		MOVOU(at(schedule, i), key)
		for _, b := range blocks {
			d.round(key, b)
		}
	}
	last := func(i int) {
		MOVOU(at(schedule, i), key)
		for _, b := range blocks {
			d.last(key, b)
		}
	}
	for i := 1; i < 10; i++ {
		round(i)
	}
	CMPQ(rounds, U8(12))
	JB(LabelRef(name + "10"))
	JE(LabelRef(name + "12"))
	for i := 10; i < 14; i++ {
		round(i)
	}
	last(14)
	JMP(LabelRef(name + "done"))
	Label(name + "12")
	round(10)
	round(11)
	last(12)
	JMP(LabelRef(name + "done"))
	Label(name + "10")
	last(10)
	Label(name + "done")
}

var all = []VecPhysical{X0, X1, X2, X3, X4, X5, X6, X7}

func subWord() {
	TEXT("subWord", NOSPLIT, "func(w uint32) uint32")
	Doc("subWord applies the S-box to the four bytes of w.")
	MOVL(NewParamAddr("w", 0), EAX)
	MOVD(EAX, X0)
	PSHUFD(U8(0), X0, X0)
	AESKEYGENASSIST(U8(0), X0, X1)
	MOVD(X1, EAX)
	r, err := ReturnIndex(0).Resolve()
	if err != nil {
		panic(err)
	}
	MOVL(EAX, r.Addr)
	PXOR(X0, X0)
	PXOR(X1, X1)
	RET()
}

func invMixColumns() {
	TEXT("invMixColumns", NOSPLIT, "func(dst, src *[16]byte)")
	Pragma("noescape")
	Doc("invMixColumns makes a round key of the inverse cipher.")
	Load(Param("dst"), RDI)
	Load(Param("src"), RSI)
	MOVOU(at(RSI, 0), X0)
	AESIMC(X0, X0)
	MOVOU(X0, at(RDI, 0))
	PXOR(X0, X0)
	RET()
}

func block(name string, d direction) {
	TEXT(name, NOSPLIT, "func(dst, src *byte, schedule *[15][16]byte, rounds int)")
	Pragma("noescape")
	Doc(name + " transforms one block of 16 bytes.")
	Load(Param("dst"), RDI)
	Load(Param("src"), RSI)
	Load(Param("schedule"), R8)
	Load(Param("rounds"), R10)
	MOVOU(at(RSI, 0), X0)
	d.pass("block", all[:1], R8, R10, X8)
	MOVOU(X0, at(RDI, 0))
	PXOR(X8, X8)
	RET()
}

// xts keeps the tweak in X9 and those of the blocks in flight on the stack.
func xts(name string, d direction) {
	TEXT(name, 0, "func(data *byte, sectors, sectorSize int, iv *[16]byte, step uint64, key, tweakKey *[15][16]byte, rounds int)")
	Pragma("noescape")
	Doc(
		name+" transforms sectors in place. The tweak of sector i, before it is encrypted, is",
		"iv with i*step added to its first 8 bytes. sectorSize is a multiple of 16.",
	)
	tweaks := AllocLocal(16 * lanes)
	tweak, carry, mask, key := X9, X10, X11, X8

	Load(Param("data"), RDI)
	Load(Param("sectors"), RSI)
	Load(Param("iv"), RAX)
	Load(Param("step"), R11)
	Load(Param("key"), R8)
	Load(Param("tweakKey"), R9)
	Load(Param("rounds"), R10)
	MOVQ(Mem{Base: RAX}, R12)          // first 8 bytes of the IV
	MOVQ(Mem{Base: RAX, Disp: 8}, R13) // the others
	MOVQ(U32(0x87), RAX)
	MOVQ(RAX, mask)
	MOVQ(U32(1), RAX)
	MOVQ(RAX, carry)
	PUNPCKLQDQ(carry, mask) // x^128 = x^7 + x^2 + x + 1, and the bit between the halves

	double := func() {
		PSHUFD(U8(0x13), tweak, carry)
		PADDQ(tweak, tweak)
		PSRAL(U8(31), carry)
		PAND(mask, carry)
		PXOR(carry, tweak)
	}

	Label("sector")
	TESTQ(RSI, RSI)
	JZ(LabelRef("end"))
	MOVQ(R12, tweak)
	MOVQ(R13, carry)
	PUNPCKLQDQ(carry, tweak)
	encrypting.pass("tweak", []VecPhysical{tweak}, R9, R10, key)
	Load(Param("sectorSize"), RCX)

	Label("eight")
	CMPQ(RCX, U32(16*lanes))
	JB(LabelRef("one"))
	for i, b := range all {
		MOVOU(at(RDI, i), b)
		MOVOU(tweak, tweaks.Offset(16*i))
		PXOR(tweak, b)
		double()
	}
	d.pass("eight", all, R8, R10, key)
	for i, b := range all {
		MOVOU(tweaks.Offset(16*i), key)
		PXOR(key, b)
		MOVOU(b, at(RDI, i))
	}
	ADDQ(U32(16*lanes), RDI)
	SUBQ(U32(16*lanes), RCX)
	JMP(LabelRef("eight"))

	Label("one")
	TESTQ(RCX, RCX)
	JZ(LabelRef("next"))
	MOVOU(at(RDI, 0), X0)
	PXOR(tweak, X0)
	d.pass("one", all[:1], R8, R10, key)
	PXOR(tweak, X0)
	MOVOU(X0, at(RDI, 0))
	double()
	ADDQ(U8(16), RDI)
	SUBQ(U8(16), RCX)
	JMP(LabelRef("one"))

	Label("next")
	ADDQ(R11, R12)
	DECQ(RSI)
	JMP(LabelRef("sector"))

	Label("end")
	PXOR(key, key)
	PXOR(tweak, tweak)
	for i := range lanes {
		MOVOU(key, tweaks.Offset(16*i))
	}
	RET()
}

func cbcEncrypt() {
	TEXT("cbcEncrypt", NOSPLIT, "func(data *byte, blocks int, iv *[16]byte, key *[15][16]byte, rounds int)")
	Pragma("noescape")
	Doc("cbcEncrypt encrypts blocks in place: one after the other, as the mode wants it.")
	Load(Param("data"), RDI)
	Load(Param("blocks"), RSI)
	Load(Param("iv"), RAX)
	Load(Param("key"), R8)
	Load(Param("rounds"), R10)
	MOVOU(at(RAX, 0), X0)
	Label("one")
	TESTQ(RSI, RSI)
	JZ(LabelRef("end"))
	MOVOU(at(RDI, 0), X1)
	PXOR(X1, X0)
	encrypting.pass("one", all[:1], R8, R10, X8)
	MOVOU(X0, at(RDI, 0))
	ADDQ(U8(16), RDI)
	DECQ(RSI)
	JMP(LabelRef("one"))
	Label("end")
	PXOR(X8, X8)
	RET()
}

func cbcDecrypt() {
	TEXT("cbcDecrypt", NOSPLIT, "func(data *byte, blocks int, iv *[16]byte, key *[15][16]byte, rounds int)")
	Pragma("noescape")
	Doc("cbcDecrypt decrypts blocks in place, eight at a time.")
	Load(Param("data"), RDI)
	Load(Param("blocks"), RSI)
	Load(Param("iv"), RAX)
	Load(Param("key"), R8)
	Load(Param("rounds"), R10)
	previous, key := X9, X8
	MOVOU(at(RAX, 0), previous)

	Label("eight")
	CMPQ(RSI, U8(lanes))
	JB(LabelRef("one"))
	for i, b := range all {
		MOVOU(at(RDI, i), b)
	}
	decrypting.pass("eight", all, R8, R10, key)
	PXOR(previous, X0)
	for i, b := range all[1:] {
		MOVOU(at(RDI, i), previous)
		PXOR(previous, b)
	}
	MOVOU(at(RDI, lanes-1), previous)
	for i, b := range all {
		MOVOU(b, at(RDI, i))
	}
	ADDQ(U32(16*lanes), RDI)
	SUBQ(U8(lanes), RSI)
	JMP(LabelRef("eight"))

	Label("one")
	TESTQ(RSI, RSI)
	JZ(LabelRef("end"))
	MOVOU(at(RDI, 0), X0)
	MOVO(X0, X10)
	decrypting.pass("one", all[:1], R8, R10, key)
	PXOR(previous, X0)
	MOVO(X10, previous)
	MOVOU(X0, at(RDI, 0))
	ADDQ(U8(16), RDI)
	DECQ(RSI)
	JMP(LabelRef("one"))
	Label("end")
	PXOR(key, key)
	RET()
}
