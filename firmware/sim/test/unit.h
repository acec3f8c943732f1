/* What every unit test file needs: cmocka with its prerequisites, and text comparison.
 *
 * Story: each test_*.c is a program of its own, linked with the core only (no sockets), built with
 * ASan and UBSan by `make test`. A failed assertion ends the program with a non-zero status. */
#ifndef RUUVI_UNIT_H
#define RUUVI_UNIT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "../core/textbuf.h"

#define assert_text(tb, expected) \
    do { \
        assert_int_equal((tb)->len, strlen(expected)); \
        assert_memory_equal((tb)->at, expected, strlen(expected)); \
    } while (0)

#endif
