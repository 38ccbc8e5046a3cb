/* The C client of the benchmark: random reads through a ring, in batches, when told to on stdin.
 *
 * usage: c_client MOUNT FILE BLOCK BATCH
 * Each line "SECONDS" on stdin is one round, answered by "READS SECONDS CPU_SECONDS". */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "hf3fs_usrbio.h"

enum { POOL = 64 };

static double now(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void check(int rc, const char *what) {
    if (rc >= 0) return;
    fprintf(stderr, "c_client: %s: %s\n", what, strerror(-rc));
    exit(1);
}

int main(int argc, char **argv) {
    if (argc != 5) return 2;
    const char *mount = argv[1];
    const size_t block = strtoul(argv[3], NULL, 10);
    const int batch = atoi(argv[4]);
    const int fd = open(argv[2], O_RDONLY);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) != 0) {
        perror(argv[2]);
        return 1;
    }

    struct hf3fs_iov iov;
    struct hf3fs_ior ior;
    check(hf3fs_iovcreate(&iov, mount, block * (size_t)batch, 0, -1), "hf3fs_iovcreate");
    check(hf3fs_iorcreate(&ior, mount, batch, true, 0, -1), "hf3fs_iorcreate");
    const int registered = hf3fs_reg_fd(fd, 0);
    check(registered > 0 ? -registered : 0, "hf3fs_reg_fd");

    struct hf3fs_cqe *cqes = calloc((size_t)batch, sizeof *cqes);
    size_t *pool = calloc((size_t)batch * POOL, sizeof *pool);
    if (!cqes || !pool) return 1;
    const size_t blocks = (size_t)st.st_size / block;
    for (size_t i = 0; i < (size_t)batch * POOL; i++) pool[i] = (size_t)random() % blocks * block;

    double seconds;
    size_t turn = 0;
    while (scanf("%lf", &seconds) == 1) {
        long reads = 0;
        const double start = now(CLOCK_MONOTONIC), cpu = now(CLOCK_PROCESS_CPUTIME_ID);
        double elapsed;
        while ((elapsed = now(CLOCK_MONOTONIC) - start) < seconds || reads == 0) {
            const size_t *offsets = pool + turn++ % POOL * (size_t)batch;
            for (int i = 0; i < batch; i++)
                check(hf3fs_prep_io(&ior, &iov, true, iov.base + (size_t)i * block, fd, offsets[i], block, NULL),
                      "hf3fs_prep_io");
            check(hf3fs_submit_ios(&ior), "hf3fs_submit_ios");
            const int done = hf3fs_wait_for_ios(&ior, cqes, batch, batch, NULL);
            check(done, "hf3fs_wait_for_ios");
            for (int i = 0; i < done; i++)
                if (cqes[i].result != (int64_t)block) check(-EIO, "a read was short");
            reads += done;
        }
        printf("%ld %.9f %.9f\n", reads, elapsed, now(CLOCK_PROCESS_CPUTIME_ID) - cpu);
        fflush(stdout);
    }
    hf3fs_dereg_fd(fd);
    hf3fs_iordestroy(&ior);
    hf3fs_iovdestroy(&iov);
    return 0;
}
