/*
 * Reads the time of day in every way and says it in whole seconds if all ways agree. With -m it
 * says the monotonic clock instead, with -v whether the kernel's vDSO is there and unchanged.
 */
#include <elf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long long of(struct timespec t)
{
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static long long read_clock(int id, int by_call)
{
	struct timespec t;

	if (by_call ? syscall(SYS_clock_gettime, id, &t) : clock_gettime(id, &t)) {
		perror("clock_gettime");
		exit(1);
	}
	return of(t);
}

/* Whether a time that was just told is not between an earlier one and now. (Of a clock that runs faster
 * much may have passed.) */
static int differs(long long told, long long earlier)
{
	const long long slack = 2000000000LL;

	return told < earlier - slack || told > read_clock(CLOCK_REALTIME, 0) + slack;
}

/* Where the vDSO's symbols of the time lead to: inside the code that its section headers name? */
static int is_unchanged(void)
{
	const char *base = (const char *)getauxval(AT_SYSINFO_EHDR);
	const Elf64_Ehdr *header = (const Elf64_Ehdr *)base;
	const Elf64_Shdr *section;
	int found = 0;

	if (!base)
		return 0;
	section = (const Elf64_Shdr *)(base + header->e_shoff);
	for (int i = 0; i < header->e_shnum; i++) {
		if (section[i].sh_type != SHT_DYNSYM)
			continue;
		const Elf64_Sym *symbol = (const Elf64_Sym *)(base + section[i].sh_addr);
		const char *names = base + section[section[i].sh_link].sh_addr;

		for (size_t n = 0; n < section[i].sh_size / sizeof(*symbol); n++) {
			const Elf64_Shdr *code = &section[symbol[n].st_shndx];

			if (strcmp(names + symbol[n].st_name, "__vdso_clock_gettime"))
				continue;
			found = symbol[n].st_value >= code->sh_addr &&
				symbol[n].st_value < code->sh_addr + code->sh_size;
		}
	}
	return found;
}

int main(int argc, char **argv)
{
	const int ids[] = { CLOCK_REALTIME, CLOCK_REALTIME_COARSE };
	long long first = read_clock(CLOCK_REALTIME, 0);
	struct timeval tv;
	struct timezone tz;

	if (argc > 1 && !strcmp(argv[1], "-v")) {
		puts(is_unchanged() ? "vdso unchanged" : "vdso changed");
		return 0;
	}
	if (argc > 1 && !strcmp(argv[1], "-m")) {
		printf("%lld\n", read_clock(CLOCK_MONOTONIC, 0) / 1000000000);
		return 0;
	}
	for (int by_call = 0; by_call < 2; by_call++)
		for (unsigned i = 0; i < sizeof(ids) / sizeof(*ids); i++)
			if (differs(read_clock(ids[i], by_call), first))
				printf("clock %d by %d differs\n", ids[i], by_call);
	gettimeofday(&tv, &tz);
	if (differs(tv.tv_sec * 1000000000LL + tv.tv_usec * 1000, first))
		puts("gettimeofday differs");
	if (syscall(SYS_gettimeofday, &tv, NULL) ||
	    differs(tv.tv_sec * 1000000000LL + tv.tv_usec * 1000, first))
		puts("the call gettimeofday differs");
	if (differs(time(NULL) * 1000000000LL, first) ||
	    differs(syscall(SYS_time, NULL) * 1000000000LL, first))
		puts("time differs");
	for (int i = 0; i < 1000; i++) {
		long long next = read_clock(CLOCK_REALTIME, i & 1);

		if (next < first)
			puts("the clock runs backwards");
		first = next;
	}
	printf("%lld\n", first / 1000000000);
	return 0;
}
