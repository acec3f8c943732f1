/* Command line of ruuvi-sim.
 *
 * Story: main.c parses once; nothing else reads argv. A bad value ends the program with status 2
 * and one line naming the option, the value and the rule. The password comes from a file only:
 * a command line is readable by every process of the machine. */
#ifndef RUUVI_OPTIONS_H
#define RUUVI_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

struct options {
    const char *host;
    uint16_t port;
    const char *topic;
    uint32_t tags;
    double rate;
    double seconds;
    uint64_t malformed_share; /* in 1e-9 */
    uint64_t fault_share;     /* in 1e-9 */
    uint32_t seed;
    const char *out;
    double replay_seconds;
    uint32_t window;
    double drain_seconds;
    uint32_t gateways;
    int64_t start_at_us; /* 0: start as soon as connected */
    const char *username; /* NULL: anonymous */
    char password[1024];
    bool progress;
};

/* Returns false when --help was asked for and printed; exits with 2 on a bad command line. */
bool options_parse(struct options *options, int argc, char **argv);

#endif
