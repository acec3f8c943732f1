/* Command line parsing, see options.h for the story. */
#include "options.h"

#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const char help[] =
    "ruuvi-sim: simulated RuuviTag gateways over MQTT 5, open loop, with a ledger\n"
    "\n"
    "usage: ruuvi-sim --rate R --seconds S --out PREFIX [options]\n"
    "\n"
    "  --host NAME            broker host (127.0.0.1)\n"
    "  --port N               broker port (1883)\n"
    "  --topic TOPIC          topic to publish to (ruuvitag/data)\n"
    "  --tags N               simulated tags (200)\n"
    "  --rate R               messages per second over all gateways\n"
    "  --seconds S            length of the schedule\n"
    "  --malformed-share X    share of broken payloads, 0..1 (0)\n"
    "  --fault-share X        share of messages with one value out of threshold, 0..1 (0)\n"
    "  --seed N               decides every value and every MAC address (1)\n"
    "  --out PREFIX           writes PREFIX.sent.csv, PREFIX.acked.csv, PREFIX.summary.json\n"
    "  --replay-seconds R     how long acknowledged messages are kept for a replay (10)\n"
    "  --window W             unacknowledged messages at most, per gateway (2000)\n"
    "  --drain-seconds D      wait at the end for outstanding acknowledgements (30)\n"
    "  --gateways G           simulated gateways, one connection each (1)\n"
    "  --start-at EPOCH_S     wall time of the first message (as soon as connected)\n"
    "  --username NAME        account at the broker, needs --password-file\n"
    "  --password-file FILE   its password is the first line of FILE\n"
    "  --progress             one JSON line per second on standard error\n"
    "  --help                 this text\n"
    "\n"
    "examples:\n"
    "  ruuvi-sim --rate 100 --seconds 10 --out run1\n"
    "  ruuvi-sim --port 18830 --username gateway --password-file gateway.pw --rate 10000 \\\n"
    "      --seconds 60 --gateways 4 --malformed-share 0.001 --fault-share 0.01 --progress \\\n"
    "      --out run2\n"
    "\n"
    "exit status: 0 the schedule ran (or was ended by a signal), 1 the ledger could not be\n"
    "written or no connection was ever accepted, 2 bad command line\n";

static _Noreturn void bad(const char *option, const char *value, const char *rule)
{
    fprintf(stderr, "ruuvi-sim: --%s \"%s\": %s\n", option, value, rule);
    exit(2);
}

static double number(const char *option, const char *value, double low, double high)
{
    char *end;
    errno = 0;
    double x = strtod(value, &end);
    if (end == value || *end != '\0' || errno != 0 || !isfinite(x) || x < low || x > high) {
        char rule[80];
        snprintf(rule, sizeof rule, "must be a number from %g to %.10g", low, high);
        bad(option, value, rule);
    }
    return x;
}

static uint32_t whole(const char *option, const char *value, uint32_t low, uint32_t high)
{
    char *end;
    errno = 0;
    unsigned long x = strtoul(value, &end, 10);
    if (*value < '0' || *value > '9' || *end != '\0' || errno != 0 || x < low || x > high) {
        char rule[80];
        snprintf(rule, sizeof rule, "must be a whole number from %u to %u", low, high);
        bad(option, value, rule);
    }
    return (uint32_t)x;
}

static const char *text(const char *option, const char *value, size_t max)
{
    if (*value == '\0' || strlen(value) > max) {
        char rule[80];
        snprintf(rule, sizeof rule, "must be 1 to %zu characters", max);
        bad(option, value, rule);
    }
    return value;
}

static void read_password(struct options *options, const char *path)
{
    FILE *file = fopen(path, "re");
    if (file == NULL)
        bad("password-file", path, strerror(errno));
    if (fgets(options->password, sizeof options->password, file) == NULL)
        options->password[0] = '\0';
    fclose(file);
    options->password[strcspn(options->password, "\r\n")] = '\0';
    if (options->password[0] == '\0')
        bad("password-file", path, "its first line must hold the password");
}

static int64_t start_time(const char *value)
{
    double now = (double)time(NULL);
    double x = number("start-at", value, 0, 1e11);
    /* A schedule far in the past is a mistake in the unit, not a wish for a burst. */
    if (x < now - 60 || x > now + 86400)
        bad("start-at", value, "must be epoch seconds, from a minute ago to a day ahead");
    return (int64_t)(x * 1e6);
}

enum { HOST, PORT, TOPIC, TAGS, RATE, SECONDS, MALFORMED, FAULT, SEED, OUT, REPLAY, WINDOW,
       DRAIN, GATEWAYS, START_AT, USERNAME, PASSWORD, PROGRESS, HELP };

static const struct option table[] = {
    {"host", 1, NULL, HOST}, {"port", 1, NULL, PORT}, {"topic", 1, NULL, TOPIC},
    {"tags", 1, NULL, TAGS}, {"rate", 1, NULL, RATE}, {"seconds", 1, NULL, SECONDS},
    {"malformed-share", 1, NULL, MALFORMED}, {"fault-share", 1, NULL, FAULT},
    {"seed", 1, NULL, SEED}, {"out", 1, NULL, OUT}, {"replay-seconds", 1, NULL, REPLAY},
    {"window", 1, NULL, WINDOW}, {"drain-seconds", 1, NULL, DRAIN},
    {"gateways", 1, NULL, GATEWAYS}, {"start-at", 1, NULL, START_AT},
    {"username", 1, NULL, USERNAME}, {"password-file", 1, NULL, PASSWORD},
    {"progress", 0, NULL, PROGRESS}, {"help", 0, NULL, HELP}, {NULL, 0, NULL, 0},
};

static void check(const struct options *options, const char *password_file)
{
    static const char required[] = "required (see --help)";
    if (options->rate == 0)
        bad("rate", "", required);
    if (options->seconds == 0)
        bad("seconds", "", required);
    if (options->out == NULL)
        bad("out", "", required);
    char value[32];
    snprintf(value, sizeof value, "%g", (double)options->fault_share / 1e9);
    if (options->malformed_share + options->fault_share > UINT64_C(1000000000))
        bad("fault-share", value, "together with --malformed-share must not exceed 1");
    snprintf(value, sizeof value, "%u", options->gateways);
    if (options->gateways > options->tags)
        bad("gateways", value, "must not exceed --tags, every gateway needs a tag");
    if (options->username != NULL && password_file == NULL)
        bad("username", options->username, "needs --password-file");
    if (options->username == NULL && password_file != NULL)
        bad("password-file", password_file, "needs --username");
    snprintf(value, sizeof value, "%g", options->seconds);
    if (options->rate * options->seconds > 4e9) /* the shares are computed in 64 bits */
        bad("seconds", value, "--rate times --seconds must not exceed 4e9 messages");
}

bool options_parse(struct options *options, int argc, char **argv)
{
    const char *password_file = NULL;
    int index, c;
    memset(options, 0, sizeof *options);
    options->host = "127.0.0.1";
    options->port = 1883;
    options->topic = "ruuvitag/data";
    options->tags = 200;
    options->seed = 1;
    options->replay_seconds = 10;
    options->window = 2000;
    options->drain_seconds = 30;
    options->gateways = 1;
    opterr = 0; /* the messages below name the rule too */
    while (index = -1, (c = getopt_long(argc, argv, ":", table, &index)) != -1) {
        const char *name = index >= 0 ? table[index].name : "";
        switch (c) {
        case HOST: options->host = text(name, optarg, 255); break;
        case PORT: options->port = (uint16_t)whole(name, optarg, 1, 65535); break;
        case TOPIC:
            options->topic = text(name, optarg, 255);
            if (strpbrk(optarg, "+#") != NULL)
                bad(name, optarg, "must not contain the wildcards + and #");
            break;
        case TAGS: options->tags = whole(name, optarg, 1, 1000000); break;
        case RATE: options->rate = number(name, optarg, 0.001, 200000); break;
        case SECONDS: options->seconds = number(name, optarg, 0.001, 1e7); break;
        case MALFORMED: options->malformed_share = (uint64_t)(number(name, optarg, 0, 1) * 1e9 + 0.5); break;
        case FAULT: options->fault_share = (uint64_t)(number(name, optarg, 0, 1) * 1e9 + 0.5); break;
        case SEED: options->seed = whole(name, optarg, 0, UINT32_MAX); break;
        case OUT: options->out = text(name, optarg, 4000); break;
        case REPLAY: options->replay_seconds = number(name, optarg, 0, 3600); break;
        case WINDOW: options->window = whole(name, optarg, 1, 30000); break;
        case DRAIN: options->drain_seconds = number(name, optarg, 0, 86400); break;
        case GATEWAYS: options->gateways = whole(name, optarg, 1, 1000); break;
        case START_AT: options->start_at_us = start_time(optarg); break;
        case USERNAME: options->username = text(name, optarg, 255); break;
        case PASSWORD: password_file = text(name, optarg, 4000); break;
        case PROGRESS: options->progress = true; break;
        case HELP: fputs(help, stdout); return false;
        case ':':
            fprintf(stderr, "ruuvi-sim: %s: needs a value (see --help)\n", argv[optind - 1]);
            exit(2);
        default:
            fprintf(stderr, "ruuvi-sim: %s: unknown option (see --help)\n", argv[optind - 1]);
            exit(2);
        }
    }
    if (optind < argc) {
        fprintf(stderr, "ruuvi-sim: \"%s\": only options are allowed (see --help)\n", argv[optind]);
        exit(2);
    }
    check(options, password_file);
    if (password_file != NULL)
        read_password(options, password_file);
    return true;
}
