/* A disk that fails on demand and forgets what was not synced, and a clock that jumps: preloaded into the relay by tests/support/shim.rs, which explains the
 * files of SHIM_STATE. Watched are the files of SHIM_FOLDER whose name begins with "journal.db", apart from "-shm", which SQLite maps and
 * makes anew after a crash.
 *
 * What was synced is kept in SHIM_STATE/i<inode>, which blocks were written since in SHIM_STATE/d<inode> (one byte a block, mapped, so that it
 * outlives kill -9), and which names the folder had when it was last synced in SHIM_STATE/names.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK = 4096, BLOCKS = 1 << 18, FDS = 4096 };

/* SHIM_STATE/control, as the test writes it. */
static volatile struct control {
  uint32_t write_errno, sync_errno, open_errno; /* not 0: such calls fail with it */
  uint32_t stall_writes, stall_syncs;           /* not 0: such calls wait until it is 0 again */
  uint32_t spare;                               /* not 0: so many more calls succeed before write_errno and sync_errno hold */
  uint32_t lazy_log;                            /* the log's syncs wait for a checkpoint, as under synchronous=NORMAL */
  uint32_t keep_image;                          /* what was synced is kept, for a power cut */
  uint32_t writes, syncs, failed;               /* counted for the test */
  int32_t clock_ahead;                          /* seconds by which the clock of the day is ahead */
  uint32_t drop_pages;                          /* 1: the next sync of the main file fails, and what was not synced of it is dropped; 2: of the log; then 0 */
} *control;

static char folder[PATH_MAX], state[PATH_MAX];
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static int log_is_owed;

static struct file {
  enum { FREE, FOLDER, MAIN, LOG } kind;
  ino_t inode;
  int image;
  uint8_t *dirty;
  int real; /* the descriptor by which it was last written */
} files[FDS];

static int (*real_open)(const char *, int, ...);
static ssize_t (*real_write)(int, const void *, size_t);
static ssize_t (*real_pwrite)(int, const void *, size_t, off_t);
static int (*real_ftruncate)(int, off_t);
static int (*real_clock_gettime)(clockid_t, struct timespec *);
static int (*real_fsync)(int), (*real_fdatasync)(int), (*real_close)(int);

static void die(const char *what) {
  dprintf(2, "tests/tools/disk.c: %s: %s\n", what, strerror(errno));
  _exit(97);
}

__attribute__((constructor)) static void start(void) {
  real_open = dlsym(RTLD_NEXT, "open64");
  real_write = dlsym(RTLD_NEXT, "write");
  real_pwrite = dlsym(RTLD_NEXT, "pwrite64");
  real_ftruncate = dlsym(RTLD_NEXT, "ftruncate64");
  real_fsync = dlsym(RTLD_NEXT, "fsync");
  real_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
  real_close = dlsym(RTLD_NEXT, "close");
  real_clock_gettime = dlsym(RTLD_NEXT, "clock_gettime");
  const char *f = getenv("SHIM_FOLDER"), *s = getenv("SHIM_STATE");
  if (!f || !s || strlen(f) > 2000 || strlen(s) > 2000) return;
  strcpy(state, s);
  char path[PATH_MAX + 16];
  snprintf(path, sizeof path, "%s/control", state);
  int fd = real_open(path, O_RDWR | O_CLOEXEC);
  if (fd < 0) die(path);
  control = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (control == MAP_FAILED) die("mmap");
  real_close(fd);
  strcpy(folder, f); /* Last: without it nothing is watched. */
}

static int starts_with(const char *text, const char *beginning) { return strncmp(text, beginning, strlen(beginning)) == 0; }
static int ends_with(const char *text, const char *end) {
  size_t a = strlen(text), b = strlen(end);
  return a >= b && strcmp(text + a - b, end) == 0;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
  if (!real_clock_gettime) real_clock_gettime = dlsym(RTLD_NEXT, "clock_gettime"); /* Others' constructors may come first. */
  int done = real_clock_gettime(clock, now);
  if (done == 0 && clock == CLOCK_REALTIME && control) now->tv_sec += control->clock_ahead;
  return done;
}

/* What kind of watched file a path is. */
static int kind_of(const char *path) {
  if (!*folder || !path) return FREE;
  char whole[PATH_MAX];
  if (*path != '/') {
    if (!getcwd(whole, sizeof whole)) return FREE;
    if (strlen(whole) + strlen(path) + 2 > sizeof whole) return FREE;
    strcat(strcat(whole, "/"), path);
    path = whole;
  }
  if (!starts_with(path, folder)) return FREE;
  const char *rest = path + strlen(folder);
  if (strcmp(rest, "") == 0 || strcmp(rest, "/") == 0) return FOLDER;
  if (!starts_with(rest, "/journal.db") || ends_with(rest, "-shm")) return FREE;
  return ends_with(rest, "-wal") ? LOG : MAIN;
}

static void copy(int from, int to, off_t at, size_t bytes) {
  char block[BLOCK];
  ssize_t got = pread(from, block, bytes, at);
  if (got > 0 && real_pwrite(to, block, got, at) != got) die("the image");
}

static int by_inode(char letter, ino_t inode, int flags) {
  char path[PATH_MAX + 32];
  snprintf(path, sizeof path, "%s/%c%lu", state, letter, (unsigned long)inode);
  return real_open(path, flags | O_CLOEXEC, 0600);
}

/* The names that the folder has now are what a power cut leaves of it. */
static void sync_names(void) {
  char now[PATH_MAX + 16], next[PATH_MAX + 16];
  snprintf(now, sizeof now, "%s/names", state);
  snprintf(next, sizeof next, "%s/names.next", state);
  FILE *out = fopen(next, "we");
  DIR *in = opendir(folder);
  if (!out || !in) die("the names");
  for (struct dirent *entry; (entry = readdir(in));)
    if (starts_with(entry->d_name, "journal.db") && !ends_with(entry->d_name, "-shm"))
      fprintf(out, "%lu %s\n", (unsigned long)entry->d_ino, entry->d_name);
  closedir(in);
  if (fclose(out) || rename(next, now)) die("the names");
}

static void watch(int fd, int kind, int is_new) {
  if (fd < 0 || fd >= FDS) return;
  struct stat stat;
  if (fstat(fd, &stat)) die("fstat");
  struct file *file = &files[fd];
  *file = (struct file){.kind = kind, .inode = stat.st_ino, .image = -1, .real = fd};
  if (kind == FOLDER || !control->keep_image) return;
  int image = is_new ? -1 : by_inode('i', stat.st_ino, O_RDWR);
  if (image < 0) {
    /* A new file holds nothing that is safe; one that was there before us is taken as synced. Under its name only once it is whole: we may be
     * killed meanwhile. */
    char now[PATH_MAX + 32], next[PATH_MAX + 32];
    snprintf(now, sizeof now, "%s/i%lu", state, (unsigned long)stat.st_ino);
    snprintf(next, sizeof next, "%s/n%lu", state, (unsigned long)stat.st_ino);
    image = by_inode('n', stat.st_ino, O_RDWR | O_CREAT | O_TRUNC);
    if (image < 0) die("the image");
    if (!is_new)
      for (off_t at = 0; at < stat.st_size; at += BLOCK) copy(fd, image, at, BLOCK);
    if (rename(next, now)) die("the image");
  }
  file->image = image;
  int dirty = by_inode('d', stat.st_ino, O_RDWR | O_CREAT | (is_new ? O_TRUNC : 0));
  if (dirty < 0 || real_ftruncate(dirty, BLOCKS)) die("the dirty blocks");
  file->dirty = mmap(NULL, BLOCKS, PROT_READ | PROT_WRITE, MAP_SHARED, dirty, 0);
  if (file->dirty == MAP_FAILED) die("mmap");
  real_close(dirty);
}

static int open_any(const char *path, int flags, mode_t mode) {
  int kind = kind_of(path);
  if (kind == FREE) return real_open(path, flags, mode);
  if (control->open_errno && kind != FOLDER && (flags & (O_WRONLY | O_RDWR | O_CREAT))) {
    control->failed++;
    errno = control->open_errno;
    return -1;
  }
  pthread_mutex_lock(&mutex);
  char names[PATH_MAX + 16];
  snprintf(names, sizeof names, "%s/names", state);
  if (control->keep_image && access(names, F_OK)) sync_names();
  int is_new = (flags & O_CREAT) && access(path, F_OK) != 0;
  int fd = real_open(path, flags, mode);
  int error = errno;
  if (fd >= 0) watch(fd, kind, is_new);
  pthread_mutex_unlock(&mutex);
  errno = error;
  return fd;
}

int open(const char *path, int flags, ...) {
  mode_t mode = 0;
  if (flags & (O_CREAT | O_TMPFILE)) { va_list more; va_start(more, flags); mode = va_arg(more, mode_t); va_end(more); }
  return open_any(path, flags, mode);
}
int open64(const char *path, int flags, ...) {
  mode_t mode = 0;
  if (flags & (O_CREAT | O_TMPFILE)) { va_list more; va_start(more, flags); mode = va_arg(more, mode_t); va_end(more); }
  return open_any(path, flags, mode);
}

int close(int fd) {
  if (fd >= 0 && fd < FDS && files[fd].kind != FREE) {
    pthread_mutex_lock(&mutex);
    if (files[fd].image >= 0) real_close(files[fd].image);
    if (files[fd].dirty) munmap(files[fd].dirty, BLOCKS);
    files[fd] = (struct file){0};
    pthread_mutex_unlock(&mutex);
  }
  return real_close(fd);
}

static struct file *watched(int fd) {
  return fd >= 0 && fd < FDS && (files[fd].kind == MAIN || files[fd].kind == LOG) ? &files[fd] : NULL;
}

/* Whether a call is to fail, after those that were spared. */
static int fails(uint32_t error) {
  if (!error) return 0;
  if (control->spare) { control->spare--; return 0; }
  control->failed++;
  errno = error;
  return 1;
}

static void keep(int fd, struct file *file) {
  struct stat stat;
  if (fstat(fd, &stat)) die("fstat");
  if (real_ftruncate(file->image, stat.st_size)) die("the image");
  for (off_t block = 0; block < BLOCKS; block++)
    if (file->dirty[block]) {
      copy(fd, file->image, block * BLOCK, BLOCK);
      file->dirty[block] = 0;
    }
}

/* A checkpoint begins to write the main file: under synchronous=NORMAL this is when the log is synced. */
static void keep_owed_log(void) {
  if (!log_is_owed) return;
  for (int fd = 0; fd < FDS; fd++)
    if (files[fd].kind == LOG && files[fd].image >= 0) keep(fd, &files[fd]);
  log_is_owed = 0;
}

/* All descriptors of one file share its dirty blocks, as they map the same file. */
static int before_write(struct file *file, off_t at, size_t bytes) {
  while (control->stall_writes) usleep(1000);
  control->writes++;
  if (fails(control->write_errno)) return -1;
  if (file->image < 0) return 0;
  if (file->kind == MAIN) keep_owed_log();
  if (bytes)
    for (off_t block = at / BLOCK; block <= (off_t)(at + bytes - 1) / BLOCK; block++) {
      if (block >= BLOCKS) { errno = EFBIG; die("the shim knows files up to 1 GiB"); }
      file->dirty[block] = 1;
    }
  return 0;
}

ssize_t write(int fd, const void *bytes, size_t count) {
  struct file *file = watched(fd);
  if (!file) return real_write(fd, bytes, count);
  pthread_mutex_lock(&mutex);
  ssize_t written = before_write(file, lseek(fd, 0, SEEK_CUR), count) ? -1 : real_write(fd, bytes, count);
  pthread_mutex_unlock(&mutex);
  return written;
}

static ssize_t pwrite_any(int fd, const void *bytes, size_t count, off_t at) {
  struct file *file = watched(fd);
  if (!file) return real_pwrite(fd, bytes, count, at);
  pthread_mutex_lock(&mutex);
  ssize_t written = before_write(file, at, count) ? -1 : real_pwrite(fd, bytes, count, at);
  pthread_mutex_unlock(&mutex);
  return written;
}
ssize_t pwrite(int fd, const void *bytes, size_t count, off_t at) { return pwrite_any(fd, bytes, count, at); }
ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t at) { return pwrite_any(fd, bytes, count, at); }

static int truncate_any(int fd, off_t length) {
  struct file *file = watched(fd);
  if (!file) return real_ftruncate(fd, length);
  pthread_mutex_lock(&mutex);
  int done = before_write(file, 0, 0) ? -1 : real_ftruncate(fd, length);
  pthread_mutex_unlock(&mutex);
  return done;
}
int ftruncate(int fd, off_t length) { return truncate_any(fd, length); }
int ftruncate64(int fd, off64_t length) { return truncate_any(fd, length); }

static int sync_any(int fd, int (*real)(int)) {
  if (fd >= 0 && fd < FDS && files[fd].kind == FOLDER) {
    pthread_mutex_lock(&mutex);
    int done = fails(control->sync_errno) ? -1 : real(fd);
    if (done == 0 && control->keep_image) sync_names();
    pthread_mutex_unlock(&mutex);
    return done;
  }
  struct file *file = watched(fd);
  if (!file) return real(fd);
  while (control->stall_syncs) usleep(1000);
  pthread_mutex_lock(&mutex);
  control->syncs++;
  int done;
  if (control->drop_pages == (file->kind == MAIN ? 1 : 2)) {
    /* As Linux does where pages cannot be written back: they count as clean from then on, and the error is told once. */
    control->drop_pages = 0;
    if (file->dirty) memset(file->dirty, 0, BLOCKS);
    control->failed++;
    errno = EIO;
    done = -1;
  } else done = fails(control->sync_errno) ? -1 : real(fd);
  if (done == 0 && file->image >= 0) {
    if (file->kind == LOG && control->lazy_log) log_is_owed = 1;
    else keep(fd, file);
  }
  pthread_mutex_unlock(&mutex);
  return done;
}
int fsync(int fd) { return sync_any(fd, real_fsync); }
int fdatasync(int fd) { return sync_any(fd, real_fdatasync); }
