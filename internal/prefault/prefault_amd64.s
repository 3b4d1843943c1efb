#include "textflag.h"

#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#define SYS_madvise 28

// The process starts here, with argc, argv and so on at SP, which stay there for userns.enter.
// What madvise returns does not matter: what is not mapped now is when it is touched.
TEXT ·enter(SB),NOSPLIT|NOFRAME,$0
	// From the text to the data: constants and the runtime's tables lie between.
	MOVQ	$runtime·text(SB), DI
	ANDQ	$~0xfff, DI
	MOVQ	$runtime·noptrdata(SB), SI
	SUBQ	DI, SI
	MOVQ	$MADV_POPULATE_READ, DX
	MOVQ	$SYS_madvise, AX
	SYSCALL
	// A stage's first argument begins with two underscores.
	MOVQ	$(512<<10), R9
	CMPQ	0(SP), $2
	JLT	command
	MOVQ	16(SP), BX
	CMPW	0(BX), $0x5f5f
	JEQ	stage
command:
	MOVQ	$(1<<20), R9
	MOVQ	$runtime·noptrdata(SB), DI
	ANDQ	$~0xfff, DI
	MOVQ	$runtime·ebss(SB), SI
	SUBQ	DI, SI
	MOVQ	$MADV_POPULATE_WRITE, DX
	MOVQ	$SYS_madvise, AX
	SYSCALL
stage:
	MOVQ	R9, ·heap(SB)
	JMP	userns·enter(SB)

// func populate(p, n uintptr) (errno uintptr)
TEXT ·populate(SB),NOSPLIT,$0-24
	MOVQ	p+0(FP), DI
	MOVQ	n+8(FP), SI
	MOVQ	$MADV_POPULATE_WRITE, DX
	MOVQ	$SYS_madvise, AX
	SYSCALL
	MOVQ	AX, errno+16(FP)
	RET
