/* CHECK(a, b): ends the program when the numbers differ, and says where. */
#ifndef CHECK_H
#define CHECK_H

#include <stdio.h>
#include <stdlib.h>

#define CHECK(got, expected)                                                                                     \
  do {                                                                                                           \
    long long got_ = (long long)(got), expected_ = (long long)(expected);                                        \
    if (got_ != expected_) {                                                                                     \
      fprintf(stderr, "%s:%d: %s is %lld, not %lld (%s)\n", __FILE__, __LINE__, #got, got_, expected_, #expected); \
      exit(1);                                                                                                   \
    }                                                                                                            \
  } while (0)

#endif
