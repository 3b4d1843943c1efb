#include "textflag.h"

// The process starts here, with argc, argv and so on at SP, as the runtime expects them.
TEXT userns·enter(SB),NOSPLIT|NOFRAME,$0
	MOVQ	SP, R8
	MOVQ	0(R8), AX
	CMPQ	AX, $3
	JLT	start
	// argv[1] is "__rank": 8 bytes with the end of it and the beginning of
	// argv[2], which lies behind.
	MOVQ	16(R8), BX
	CMPL	0(BX), $0x61725f5f
	JNE	start
	CMPW	4(BX), $0x6b6e
	JNE	start
	CMPB	6(BX), $0
	JNE	start
	// prctl(PR_SET_DUMPABLE, 0)
	MOVQ	$157, AX
	MOVQ	$4, DI
	XORQ	SI, SI
	SYSCALL
	// setns(argv[2], CLONE_NEWUSER): two digits.
	MOVQ	24(R8), BX
	MOVBQZX	0(BX), DI
	SUBQ	$48, DI
	IMULQ	$10, DI
	MOVBQZX	1(BX), CX
	SUBQ	$48, CX
	ADDQ	CX, DI
	MOVQ	$0x10000000, SI
	MOVQ	$308, AX
	SYSCALL
start:
	JMP	_rt0_amd64_linux(SB)
