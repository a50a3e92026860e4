/*
 * Enters the kernel where a filter on the numbers of the 64-bit table does not look: by the 32-bit
 * gate (int80), or with a number of the x32 table (x32). Says what the kernel answered to getpid.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static long int80(long number)
{
	long result;

	__asm__ volatile("int $0x80" : "=a"(result) : "a"(number)
			 : "memory", "r8", "r9", "r10", "r11");
	return (int)result;
}

static long entry(long number)
{
	long result;

	__asm__ volatile("syscall" : "=a"(result) : "a"(number) : "rcx", "r11", "memory");
	return result;
}

int main(int argc, char **argv)
{
	long result;

	if (argc != 2)
		return 2;
	if (!strcmp(argv[1], "int80"))
		result = int80(20);
	else
		result = entry(0x40000000 | 39);
	if (result == -ENOSYS)
		puts("ENOSYS");
	else
		printf("%ld\n", result);
	return 0;
}
