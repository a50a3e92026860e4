// cc: -pthread
/* Executes a program from a thread, after an exec that fails; or after vfork. */
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static void *run(void *argv)
{
	char **words = argv;

	execv("/nonexistent/program", words);
	execv(words[0], words);
	perror("exec");
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t thread;

	if (argc > 2 && !strcmp(argv[1], "vfork")) {
		if (!vfork()) {
			execv(argv[2], argv + 2);
			_exit(1);
		}
		wait(NULL);
		return 0;
	}
	pthread_create(&thread, NULL, run, argv + 1);
	pthread_join(thread, NULL);
	return 1;
}
