/*
 * The smallest PID 1: says when its first instruction ran, and ends the machine.
 *
 * Under QEMU's -icount shift=0 the time stamp counter counts nanoseconds of guest time, one an instruction, from power
 * on. Freestanding, so that nothing of a C library is counted.
 */
#define O_WRONLY 1
#define SYS_write 1
#define SYS_open 2
#define SYS_reboot 169
#define SYS_clock_gettime 228
#define CLOCK_BOOTTIME 7

static long call(long nr, long a, long b, long c, long d)
{
	long ret;
	register long r10 __asm__("r10") = d;

	__asm__ volatile("syscall"
			 : "=a"(ret)
			 : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10)
			 : "rcx", "r11", "memory");
	return ret;
}

static char *put(char *at, const char *text)
{
	while (*text)
		*at++ = *text++;
	return at;
}

static char *put_number(char *at, unsigned long number)
{
	char digits[20];
	int n = 0;

	do {
		digits[n++] = '0' + number % 10;
		number /= 10;
	} while (number);
	while (n)
		*at++ = digits[--n];
	return at;
}

void _start(void)
{
	unsigned int low, high;
	struct { long seconds, nanoseconds; } booted;
	static char line[200];
	char *end = line;
	long kmsg;

	__asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
	call(SYS_clock_gettime, CLOCK_BOOTTIME, (long)&booted, 0, 0);

	end = put(end, "<0>measure-init: tsc ");
	end = put_number(end, (unsigned long)high << 32 | low);
	end = put(end, " boottime ");
	end = put_number(end, booted.seconds * 1000000000ul + booted.nanoseconds);
	end = put(end, " end\n");
	kmsg = call(SYS_open, (long)"/dev/kmsg", O_WRONLY, 0, 0);
	call(SYS_write, kmsg, (long)line, end - line, 0);

	/* LINUX_REBOOT_CMD_RESTART; QEMU runs with -no-reboot. */
	call(SYS_reboot, 0xfee1dead, 672274793, 0x01234567, 0);
	for (;;)
		;
}
