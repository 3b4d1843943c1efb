#include "textflag.h"

// The process starts here, with argc, argv and so on at RSP, as the runtime expects them.
TEXT userns·enter(SB),NOSPLIT|NOFRAME,$0
	MOVD	RSP, R9
	MOVD	0(R9), R0
	CMP	$3, R0
	BLT	start
	// argv[1] is "__rank", with the end of it.
	MOVD	16(R9), R1
	MOVWU	0(R1), R2
	MOVD	$0x61725f5f, R3
	CMP	R3, R2
	BNE	start
	MOVHU	4(R1), R2
	MOVD	$0x6b6e, R3
	CMP	R3, R2
	BNE	start
	MOVBU	6(R1), R2
	CBNZ	R2, start
	// prctl(PR_SET_DUMPABLE, 0)
	MOVD	$4, R0
	MOVD	$0, R1
	MOVD	$167, R8
	SVC
	// setns(argv[2], CLONE_NEWUSER): two digits.
	MOVD	24(R9), R1
	MOVBU	0(R1), R0
	SUB	$48, R0
	MOVD	$10, R2
	MUL	R2, R0
	MOVBU	1(R1), R2
	SUB	$48, R2
	ADD	R2, R0
	MOVD	$0x10000000, R1
	MOVD	$268, R8
	SVC
start:
	JMP	_rt0_arm64_linux(SB)
