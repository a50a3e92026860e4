/*
 * Tries to read the memory of a process, and says what comes of it.
 *
 *     read_process PID
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

int main(int argc, char **argv)
{
	char here[8];
	/* The permission is checked before the address is looked at, so that any address will do. */
	struct iovec own = {here, sizeof here}, theirs = {here, sizeof here};

	if (argc != 2)
		return 2;
	ssize_t count = process_vm_readv(atoi(argv[1]), &own, 1, &theirs, 1, 0);
	if (count >= 0 || errno == EFAULT)
		puts("read");
	else
		puts(errno == EPERM ? "EPERM" : errno == ESRCH ? "ESRCH" : strerror(errno));
	return 0;
}
