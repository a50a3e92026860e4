// Forks as many children as asked, fifty at a time; each ends with a status of its own, every tenth
// through an exec. Checks every status.
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

enum { AT_ONCE = 50 };

static int wanted_status(int number)
{
    return number % 10 ? number % 200 : 0;
}

static void check_one(int *numbers, pid_t *pids)
{
    int status;
    pid_t pid = wait(&status);
    for (int i = 0; i < AT_ONCE; i++) {
        if (pids[i] != pid)
            continue;
        if (!WIFEXITED(status) || WEXITSTATUS(status) != wanted_status(numbers[i])) {
            printf("process %d: wait status %#x\n", numbers[i], status);
            exit(1);
        }
        pids[i] = 0;
        return;
    }
    printf("wait gave %d, which is none of the children\n", pid);
    exit(1);
}

int main(int argc, char **argv)
{
    int count = argc > 1 ? atoi(argv[1]) : 1;
    int numbers[AT_ONCE] = {0};
    pid_t pids[AT_ONCE] = {0};
    int alive = 0;
    for (int number = 0; number < count; number++) {
        if (alive == AT_ONCE) {
            check_one(numbers, pids);
            alive--;
        }
        int slot = 0;
        while (pids[slot])
            slot++;
        pid_t pid = fork();
        if (pid < 0) {
            perror("fork");
            return 1;
        }
        if (pid == 0) {
            if (number % 10)
                _exit(wanted_status(number));
            execl("/bin/true", "true", NULL);
            _exit(255);
        }
        numbers[slot] = number;
        pids[slot] = pid;
        alive++;
    }
    while (alive-- > 0)
        check_one(numbers, pids);
    printf("%d processes ended as they should\n", count);
    return 0;
}
