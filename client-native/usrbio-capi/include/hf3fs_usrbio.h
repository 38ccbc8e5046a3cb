/* The name that programs written for 3FS include. */
#ifndef HF3FS_USRBIO_H
#define HF3FS_USRBIO_H

#include "usrbio.h"

#endif
