#include "textflag.h"

#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#define SYS_madvise 233

// The process starts here, with argc, argv and so on at RSP, which stay there for userns.enter.
// What madvise returns does not matter: what is not mapped now is when it is touched.
// Addresses are rounded to the largest pages that there are, 64 kB, to which the linker aligns segments.
TEXT ·enter(SB),NOSPLIT|NOFRAME,$0
	// The text, and then constants and the runtime's tables: with small pages there is a hole between.
	MOVD	$runtime·text(SB), R0
	AND	$~0xffff, R0
	MOVD	$runtime·etext(SB), R1
	SUB	R0, R1, R1
	MOVD	$MADV_POPULATE_READ, R2
	MOVD	$SYS_madvise, R8
	SVC
	MOVD	$runtime·rodata(SB), R0
	AND	$~0xffff, R0
	MOVD	$runtime·epclntab(SB), R1
	SUB	R0, R1, R1
	MOVD	$MADV_POPULATE_READ, R2
	MOVD	$SYS_madvise, R8
	SVC
	// A stage's first argument begins with two underscores.
	MOVD	$(512<<10), R9
	MOVD	0(RSP), R3
	CMP	$2, R3
	BLT	command
	MOVD	16(RSP), R3
	MOVHU	0(R3), R3
	MOVD	$0x5f5f, R4
	CMP	R4, R3
	BEQ	stage
command:
	MOVD	$(1<<20), R9
	MOVD	$runtime·noptrdata(SB), R0
	AND	$~0xffff, R0
	MOVD	$runtime·ebss(SB), R1
	SUB	R0, R1, R1
	MOVD	$MADV_POPULATE_WRITE, R2
	MOVD	$SYS_madvise, R8
	SVC
stage:
	MOVD	R9, ·heap(SB)
	JMP	userns·enter(SB)

// func populate(p, n uintptr) (errno uintptr)
TEXT ·populate(SB),NOSPLIT,$0-24
	MOVD	p+0(FP), R0
	MOVD	n+8(FP), R1
	MOVD	$MADV_POPULATE_WRITE, R2
	MOVD	$SYS_madvise, R8
	SVC
	MOVD	R0, errno+16(FP)
	RET
