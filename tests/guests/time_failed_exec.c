/* After each exec that fails the program goes on at once, with a call that shows a time: the stamp of
 * a file that was made just now. Says how many were shown that are not of the program's own clock. */
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	int wrong = 0;

	if (argc < 2 || close(open(argv[1], O_CREAT | O_WRONLY, 0600)))
		return 1;
	for (int i = 0; i < 500; i++) {
		struct stat made;
		time_t now = time(NULL);

		execv("/nonexistent/program", argv);
		if (stat(argv[1], &made) || made.st_mtime < now - 3600 || made.st_mtime > now + 3600)
			wrong++;
	}
	printf("%d wrong\n", wrong);
	return 0;
}
