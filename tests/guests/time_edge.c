/* A short sleep with the stack at the very beginning of what is mapped: nothing can be laid below it. The sleep ends
 * all the same. */
#include <stdio.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>

int main(void)
{
	const size_t page = 4096;
	char *both = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct timespec moment = { 0, 600000000 };
	long result = SYS_nanosleep;

	if (both == MAP_FAILED || munmap(both, page))
		return 1;
	__asm__ volatile("mov %%rsp, %%rbx\n\t"
			 "mov %1, %%rsp\n\t"
			 "syscall\n\t"
			 "mov %%rbx, %%rsp"
			 : "+a"(result)
			 : "r"(both + page), "D"(&moment), "S"(0)
			 : "rbx", "rcx", "r11", "memory");
	printf("slept: %ld\n", result);
	return 0;
}
