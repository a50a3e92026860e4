/*
 * Exchanges two names for each other again and again, until a third one is there.
 *
 *     exchange ONE OTHER STOP
 *
 * Makes the file "begun" when it has done so once.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>
#include <sys/syscall.h>

#ifndef RENAME_EXCHANGE
#define RENAME_EXCHANGE 2
#endif

int main(int argc, char **argv)
{
	time_t end = time(NULL) + 300;

	if (argc != 4) {
		fputs("usage: exchange ONE OTHER STOP\n", stderr);
		return 2;
	}
	for (long i = 0; access(argv[3], F_OK) && time(NULL) < end; i++) {
		if (syscall(SYS_renameat2, AT_FDCWD, argv[1], AT_FDCWD, argv[2], RENAME_EXCHANGE)) {
			perror("exchange");
			return 1;
		}
		if (i == 0)
			close(open("begun", O_WRONLY | O_CREAT, 0644));
	}
	return 0;
}
