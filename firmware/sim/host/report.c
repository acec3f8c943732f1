/* Progress and summary, see report.h for the story. */
#include "report.h"

#include "../core/json_writer.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>

void totals(const struct gateway *gateways, uint32_t count, struct run_totals *out)
{
    memset(out, 0, sizeof *out);
    for (uint32_t i = 0; i < count; i++) {
        const struct pw_counters *window = &gateways[i].window.count;
        const struct link *link = &gateways[i].link;
        out->window.acked += window->acked;
        out->window.resent += window->resent;
        out->window.replayed += window->replayed;
        out->window.no_subscriber += window->no_subscriber;
        out->window.refused += window->refused;
        out->window.stray += window->stray;
        out->outstanding += pw_outstanding(&gateways[i].window);
        out->accepted += link->accepted;
        out->reconnects += link->accepted > 0 ? link->accepted - 1 : 0;
        out->refused += link->refused;
        out->failed += link->failed;
        out->disconnects += link->disconnects;
    }
}

/* Milliseconds with the three decimals that microseconds give. */
static void ms(struct json_writer *jw, const char *key, int64_t us)
{
    jw_fixed(jw, key, us, 3);
}

void progress(const struct books *books, const struct gateway *gateways, uint32_t count,
              int64_t now_us)
{
    struct run_totals sum;
    char bytes[512];
    struct textbuf text;
    struct json_writer jw;
    totals(gateways, count, &sum);
    tb_init(&text, bytes, sizeof bytes);
    jw_begin(&jw, &text);
    jw_fixed(&jw, "t", (now_us - books->source.t0_us) / 1000, 3);
    jw_uint(&jw, "sent", books->written);
    jw_uint(&jw, "acked", sum.window.acked);
    jw_uint(&jw, "unacked", books->due - sum.window.acked);
    ms(&jw, "slip_p99_ms", histogram_percentile(&books->slip, 990));
    jw_uint(&jw, "reconnects", sum.reconnects);
    jw_end(&jw);
    fprintf(stderr, "%.*s\n", (int)text.len, text.at);
}

static int64_t cpu_us(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return ((int64_t)usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000000 +
           usage.ru_utime.tv_usec + usage.ru_stime.tv_usec;
}

static void fill(struct json_writer *jw, const struct options *options, const struct books *books,
                 const struct run_totals *sum, int64_t now_us)
{
    int64_t span = books->last_us - books->first_us;
    /* n messages are n - 1 intervals apart. */
    double rate = span > 0 ? (double)(books->written - 1) * 1e6 / (double)span : 0;
    jw_fixed(jw, "rate_target", (int64_t)(options->rate * 1000 + 0.5), 3);
    jw_fixed(jw, "rate_actual", (int64_t)(rate * 1000 + 0.5), 3);
    jw_uint(jw, "messages_due", books->due);
    jw_uint(jw, "messages_sent", books->written);
    jw_uint(jw, "acked", sum->window.acked);
    jw_uint(jw, "unknown", books->written - sum->window.acked);
    jw_uint(jw, "unsent", books->due - books->written);
    jw_uint(jw, "overflow", books->overflow);
    jw_uint(jw, "outstanding", sum->outstanding);
    jw_uint(jw, "resent", sum->window.resent);
    jw_uint(jw, "replayed", sum->window.replayed);
    jw_uint(jw, "malformed", books->malformed);
    jw_uint(jw, "faults", books->faults);
    jw_uint(jw, "disconnects", sum->disconnects);
    jw_uint(jw, "reconnects", sum->reconnects);
    jw_uint(jw, "connect_refused", sum->refused);
    jw_uint(jw, "connect_failed", sum->failed);
    jw_uint(jw, "puback_no_subscriber", sum->window.no_subscriber);
    jw_uint(jw, "puback_error", sum->window.refused);
    jw_uint(jw, "puback_stray", sum->window.stray);
    ms(jw, "slip_p50_ms", histogram_percentile(&books->slip, 500));
    ms(jw, "slip_p99_ms", histogram_percentile(&books->slip, 990));
    ms(jw, "slip_max_ms", books->slip.max_us);
    ms(jw, "late_p99_ms", histogram_percentile(&books->late, 990));
    ms(jw, "late_max_ms", books->late.max_us);
    ms(jw, "ack_p50_ms", histogram_percentile(&books->ack, 500));
    ms(jw, "ack_p99_ms", histogram_percentile(&books->ack, 990));
    jw_int(jw, "t0_us", books->source.t0_us);
    jw_int(jw, "first_us", books->first_us);
    jw_int(jw, "last_us", books->last_us);
    jw_fixed(jw, "cpu_s", cpu_us() / 1000, 3);
    jw_fixed(jw, "seconds", (now_us - books->source.t0_us) / 1000, 3);
    jw_uint(jw, "seed", options->seed);
    jw_uint(jw, "tags", options->tags);
    jw_uint(jw, "gateways", options->gateways);
}

bool summary_write(const struct options *options, const struct books *books,
                   const struct gateway *gateways, int64_t now_us)
{
    struct run_totals sum;
    char bytes[2048], path[4096], draft[4096];
    struct textbuf text;
    struct json_writer jw;
    totals(gateways, options->gateways, &sum);
    tb_init(&text, bytes, sizeof bytes);
    jw_begin(&jw, &text);
    fill(&jw, options, books, &sum, now_us);
    jw_end(&jw);
    tb_chr(&text, '\n');

    snprintf(path, sizeof path, "%s.summary.json", options->out);
    snprintf(draft, sizeof draft, "%s.summary.json.new", options->out);
    FILE *file = fopen(draft, "we");
    bool ok = file != NULL && fwrite(text.at, 1, text.len, file) == text.len;
    if (file != NULL)
        ok = fclose(file) == 0 && ok;
    ok = ok && rename(draft, path) == 0;
    if (!ok)
        fprintf(stderr, "ruuvi-sim: cannot write %s: %s\n", path, strerror(errno));
    fwrite(text.at, 1, text.len, stdout);
    fflush(stdout);
    return ok;
}
