/*
 * A kernel that is nothing but its entry: says what the time stamp counter is when the firmware hands over, and resets.
 * What is counted before it is the firmware's. Entered by PVH: 32 bits, flat segments, no paging.
 */
	.section .note.pvh, "a", @note
	.long	4, 4, 18		/* XEN_ELFNOTE_PHYS32_ENTRY */
	.asciz	"Xen"
	.long	_start

	.text
	.code32
	.globl	_start
_start:
	rdtsc
	movl	%eax, %esi
	movl	%edx, %edi
	movl	$0x200000, %esp
	movl	$text, %ebp
1:	movb	(%ebp), %al
	testb	%al, %al
	jz	2f
	call	send
	incl	%ebp
	jmp	1b
2:	movl	%edi, %ebp
	call	number
	movl	%esi, %ebp
	call	number
	movb	$10, %al
	call	send
	/* Reset by the keyboard controller's line, else by a fault without handlers. */
	movb	$0xfe, %al
	outb	%al, $0x64
	lidt	nothing
	int3

/* The 32 bits in %ebp as hexadecimal. */
number:	movl	$8, %ecx
3:	roll	$4, %ebp
	movl	%ebp, %eax
	andb	$15, %al
	addb	$48, %al
	cmpb	$58, %al
	jb	4f
	addb	$39, %al
4:	call	send
	loop	3b
	ret

/* %al to the first serial port. */
send:	movw	$0x3f8, %dx
	outb	%al, %dx
	ret

text:	.asciz	"measure-entry: tsc 0x"
nothing: .word	0
	.long	0
