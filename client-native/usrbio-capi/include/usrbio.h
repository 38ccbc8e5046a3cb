/*
 * USRBIO: zero-copy, batched, asynchronous I/O on the files of a 3FS mount.
 *
 *   1. hf3fs_iovcreate    a data buffer in shared memory, which the daemon reads and writes directly
 *   2. hf3fs_iorcreate4   a ring: a queue of requests and a queue of completions, for reads or for writes
 *   3. hf3fs_reg_fd       makes an open file known to requests
 *   4. hf3fs_prep_io      queues a request; any number of times
 *   5. hf3fs_submit_ios   tells the daemon
 *   6. hf3fs_wait_for_ios takes completions
 *
 * One thread prepares on a ring and one waits, at a time; they may be different threads. Make rings after fork():
 * one that is inherited answers -ECHILD. Functions answer 0 or more for success and a negative errno otherwise,
 * except hf3fs_reg_fd, hf3fs_hardlink and hf3fs_punchhole, whose errnos are positive. What is wrong, and what to do
 * about it, goes to stderr; HF3FS_USRBIO_LIB_LOG sets the level (default WARN).
 *
 * Source and binary compatible with the header and library of the same functions in 3FS.
 */
#ifndef USRBIO_H
#define USRBIO_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

struct timespec;

/* What the ioctl behind hf3fs_is_hf3fs answers. */
#define HF3FS_SUPER_MAGIC 0x8f3f5fff

/* Ring flags, to be or-ed. Reads may see data that is not committed on every replica yet. */
#define HF3FS_IOR_ALLOW_READ_UNCOMMITTED 1
/* A read over a hole that has data behind it fails with -ENODATA, where zeros are read otherwise. */
#define HF3FS_IOR_FORBID_READ_HOLES 2

/* A data buffer. Read its fields, do not write them. */
struct hf3fs_iov {
  uint8_t *base;         /* where it is mapped; NULL once destroyed */
  void *iovh;            /* private; NULL for a wrapped one */
  char id[16];           /* UUID, its bytes in text order */
  char mount_point[256]; /* NUL-terminated */
  size_t size;           /* bytes */
  size_t block_size;     /* no request may straddle two blocks; 0: one block */
  int numa;              /* NUMA node asked for; below 0: any */
};

/* A ring. Read its fields, do not write them. */
struct hf3fs_ior {
  struct hf3fs_iov iov; /* the ring's own memory */
  void *iorh;           /* private; NULL once destroyed */
  char mount_point[256];
  bool for_read;
  int io_depth;
  int priority;
  int timeout;
  uint64_t flags;
};

/* A completion. */
struct hf3fs_cqe {
  int32_t index;    /* what hf3fs_prep_io answered */
  int32_t reserved;
  int64_t result;   /* bytes moved, or a negative errno */
  const void *userdata;
};

/* Does fd belong to a file or directory of a 3FS mount? */
bool hf3fs_is_hf3fs(int fd);

/* Finds the mount point of the 3FS mount that holds path, which must exist. Returns its length with the NUL, or -1.
 * It is written only if it fits into the size bytes of hf3fs_mount_point. */
int hf3fs_extract_mount_point(char *hf3fs_mount_point, int size, const char *path);

/* Makes and registers a buffer of size bytes, its pages present: -ENOSPC if /dev/shm cannot hold it. */
int hf3fs_iovcreate(struct hf3fs_iov *iov, const char *hf3fs_mount_point, size_t size, size_t block_size, int numa);

/* Maps the buffer that another process registered as id, with the same block_size. */
int hf3fs_iovopen(struct hf3fs_iov *iov, const uint8_t id[16], const char *hf3fs_mount_point, size_t size,
                  size_t block_size, int numa);

/* Removes the name of the shared-memory file; the buffer stays usable and can no longer be opened. */
void hf3fs_iovunlink(struct hf3fs_iov *iov);

/* Unmaps the buffer. In the process that made it, also unregisters and removes it. */
void hf3fs_iovdestroy(struct hf3fs_iov *iov);

/* Describes memory that the caller registered by itself: base is where the registered shared memory starts. */
int hf3fs_iovwrap(struct hf3fs_iov *iov, void *base, const uint8_t id[16], const char *hf3fs_mount_point, size_t size,
                  size_t block_size, int numa);

/* Bytes of shared memory of a ring. */
size_t hf3fs_ior_size(int entries);

/* Makes a ring with room for entries requests, all reads or all writes.
 *
 * io_depth  0: the daemon takes what is queued. n: it waits, for ever, until n requests are queued, and takes n.
 *           -n: it takes up to n at once, and waits for more until the timeout.
 * priority  below 0 high, 0 normal, above 0 low
 * timeout   in ms, for a negative io_depth
 * flags     HF3FS_IOR_* */
int hf3fs_iorcreate(struct hf3fs_ior *ior, const char *hf3fs_mount_point, int entries, bool for_read, int io_depth,
                    int numa);
int hf3fs_iorcreate2(struct hf3fs_ior *ior, const char *hf3fs_mount_point, int entries, bool for_read, int io_depth,
                     int priority, int numa);
int hf3fs_iorcreate3(struct hf3fs_ior *ior, const char *hf3fs_mount_point, int entries, bool for_read, int io_depth,
                     int priority, int timeout, int numa);
int hf3fs_iorcreate4(struct hf3fs_ior *ior, const char *hf3fs_mount_point, int entries, bool for_read, int io_depth,
                     int timeout, int numa, uint64_t flags);

/* Unregisters and unmaps the ring. */
void hf3fs_iordestroy(struct hf3fs_ior *ior);

/* Makes an open file known to requests, and keeps it so until hf3fs_dereg_fd. Returns a handle, 0 or less, that may
 * stand for fd; or a POSITIVE errno: EBADF if the file is on no 3FS mount, EINVAL if fd is registered already.
 * flags are ignored. */
int hf3fs_reg_fd(int fd, uint64_t flags);

/* Ends a registration, by fd (before or after it is closed) or by the handle. */
void hf3fs_dereg_fd(int fd);

/* How many requests fit into the ring. */
int hf3fs_io_entries(const struct hf3fs_ior *ior);

/* Queues a request: len bytes between ptr, inside iov, and offset off of the file. Returns its slot, or
 * -EINVAL (wrong direction, range or ring), -EBADF (fd is not registered), -EACCES (fd is not open for this
 * direction), -EAGAIN (the ring is full), -EIO (the ring is broken). */
int hf3fs_prep_io(const struct hf3fs_ior *ior, const struct hf3fs_iov *iov, bool read, void *ptr, int fd, size_t off,
                  uint64_t len, const void *userdata);

/* Tells the daemon that requests are queued. Any thread may. */
int hf3fs_submit_ios(const struct hf3fs_ior *ior);

/* Takes at most cqec completions, oldest first; returns once there are min_results, or at abs_timeout
 * (CLOCK_REALTIME; NULL: never) with what there is. min_results 0 does not wait. */
int hf3fs_wait_for_ios(const struct hf3fs_ior *ior, struct hf3fs_cqe *cqes, int cqec, int min_results,
                       const struct timespec *abs_timeout);

/* Links the file target as link_name, on the same mount. Returns 0 or a POSITIVE errno. */
int hf3fs_hardlink(const char *target, const char *link_name);

/* Frees n (at most 1000) byte ranges [start[i], end[i]) of a file, multiples of its chunk size. Returns 0 or a
 * POSITIVE errno. flags are ignored. */
int hf3fs_punchhole(int fd, int n, const size_t *start, const size_t *end, size_t flags);

#ifdef __cplusplus
}
#endif

#endif
