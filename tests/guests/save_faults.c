// cc: -pthread
/*
 * Threads that do little but fault, as programs do that are told of their memory by SIGSEGV: each
 * fault has to come once, with its address.
 *
 *     save_faults READY GO
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define THREADS 3
#define PAGE 4096

static struct {
	char *page;
	volatile long made, heard, wrong;
} all[THREADS];
static volatile int over;

static void hear(int signal, siginfo_t *information, void *context)
{
	(void)context;
	char *at = information->si_addr;
	for (int i = 0; i < THREADS; i++)
		if (at >= all[i].page && at < all[i].page + PAGE) {
			all[i].heard++;
			if (signal != SIGSEGV || information->si_code != SEGV_ACCERR || at != all[i].page + all[i].made % PAGE)
				all[i].wrong++;
			mprotect(all[i].page, PAGE, PROT_READ | PROT_WRITE);
			return;
		}
	static const char text[] = "a fault that nobody has made\n";
	_exit(write(1, text, sizeof text - 1) < 0 ? 4 : 3);
}

static void *fault(void *number)
{
	long i = (long)(intptr_t)number;
	while (!over) {
		mprotect(all[i].page, PAGE, PROT_NONE);
		all[i].page[all[i].made % PAGE] = 1;
		all[i].made++;
	}
	return NULL;
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_sigaction = hear, .sa_flags = SA_SIGINFO };
	pthread_t threads[THREADS];
	if (argc != 3)
		return 2;
	sigaction(SIGSEGV, &action, NULL);
	for (long i = 0; i < THREADS; i++) {
		all[i].page = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		pthread_create(&threads[i], NULL, fault, (void *)(intptr_t)i);
	}
	close(open(argv[1], O_CREAT | O_WRONLY, 0600));
	while (access(argv[2], F_OK))
		usleep(10000);
	over = 1;
	int differs = 0;
	for (int i = 0; i < THREADS; i++) {
		pthread_join(threads[i], NULL);
		if (all[i].made != all[i].heard || all[i].wrong)
			differs = printf("made %ld, heard %ld, wrong %ld\n", all[i].made, all[i].heard, all[i].wrong);
	}
	puts(differs ? "not so" : "all heard");
	return differs != 0;
}
