/* Messages by number, see source.h for the story. */
#include "source.h"

#include "rng.h"
#include "textbuf.h"

#include <string.h>

const char *kind_name(enum message_kind kind)
{
    static const char *const names[KIND_COUNT] = {
        "ok", "fault", "bad:not_json", "bad:truncated", "bad:wrong_type", "bad:nan",
        "bad:no_device", "bad:bad_mac", "bad:bad_time",
    };
    return names[kind];
}

const char *field_name(enum fault_field field)
{
    static const char *const names[] = {"", "temperature", "humidity", "pressure", "battery_voltage"};
    return names[field];
}

void source_init(struct source *source, uint32_t seed, uint32_t tags, uint32_t gateways,
                 double rate, uint64_t malformed_share, uint64_t fault_share)
{
    memset(source, 0, sizeof *source);
    source->seed = seed;
    source->tags = tags;
    source->gateways = gateways;
    source->rate = rate;
    source->malformed.share = malformed_share;
    source->malformed.seed = rng_hash(seed, 1);
    /* Faults are drawn among the well-formed messages, so the share of those must be larger to
     * make the asked-for share of all. */
    uint64_t well_formed = SPREAD_ONE - malformed_share;
    if (fault_share > 0 && well_formed > 0) {
        uint64_t share = (uint64_t)((double)fault_share / (double)well_formed * 1e9 + 0.5);
        source->faults.share = share > SPREAD_ONE ? SPREAD_ONE : share;
    }
    source->faults.seed = rng_hash(seed, 2);
}

int64_t source_due_us(const struct source *source, uint64_t seq)
{
    return source->t0_us + (int64_t)((double)seq * 1e6 / source->rate);
}

/* A tag always speaks through the same gateway, as a tag on a wall does. */
uint32_t source_gateway(const struct source *source, uint64_t seq)
{
    return (uint32_t)(seq % source->tags) % source->gateways;
}

void source_gateway_name(uint32_t seed, uint32_t index, char out[GATEWAY_NAME_MAX])
{
    struct textbuf text;
    tb_init(&text, out, GATEWAY_NAME_MAX - 1);
    tb_str(&text, "gw-");
    tb_u64(&text, seed);
    tb_chr(&text, '-');
    tb_u64(&text, index);
    out[text.len] = '\0';
}

static void device_name(uint32_t seed, uint32_t tag, char out[DEVICE_LEN + 1])
{
    static const char hex[] = "0123456789abcdef";
    /* An odd multiplier is a permutation of 24 bits: no two tags of a run share an address. */
    uint32_t low = (tag * 0x9e3779u + (uint32_t)rng_hash(seed, 3)) & 0xffffff;
    memcpy(out, "c6:8d:c6:00:00:00", DEVICE_LEN + 1);
    for (int i = 0; i < 3; i++) {
        unsigned byte = low >> (16 - 8 * i) & 0xff;
        out[9 + 3 * i] = hex[byte >> 4];
        out[10 + 3 * i] = hex[byte & 15];
    }
}

static void inject(struct message *message, uint64_t nth)
{
    struct rng rng = {rng_hash(message->seed ^ 0x6661756c74, message->seq)};
    struct reading_values *v = &message->values;
    bool high = nth / 4 % 2 == 0;
    message->field = (enum fault_field)(FIELD_TEMPERATURE + nth % 4);
    switch (message->field) {
    case FIELD_TEMPERATURE: /* 50.005..69.995 or the negative of it */
        v->temperature_milli = 5 * (10001 + (int32_t)rng_below(&rng, 3999));
        if (!high)
            v->temperature_milli = -v->temperature_milli;
        break;
    case FIELD_HUMIDITY: /* 1.0000..14.9975 */
        v->humidity_e4 = 25 * (400 + (int32_t)rng_below(&rng, 5600));
        break;
    case FIELD_PRESSURE:
        v->pressure_pa = high ? 108501 + (int32_t)rng_below(&rng, 5000)
                              : 86999 - (int32_t)rng_below(&rng, 5000);
        break;
    case FIELD_BATTERY: /* 1.600..1.999, the lowest that RAWv2 can say is 1.600 */
        v->battery_milli = 1600 + (int32_t)rng_below(&rng, 400);
        break;
    case FIELD_NONE:
        break;
    }
}

static enum message_kind classify(const struct source *source, uint64_t seq, uint64_t *nth)
{
    uint64_t malformed_before;
    if (spread_hit(&source->malformed, seq, &malformed_before)) {
        *nth = malformed_before;
        return (enum message_kind)(KIND_NOT_JSON + malformed_before % (KIND_COUNT - KIND_NOT_JSON));
    }
    return spread_hit(&source->faults, seq - malformed_before, nth) ? KIND_FAULT : KIND_OK;
}

enum message_kind source_kind(const struct source *source, uint64_t seq)
{
    uint64_t nth;
    return classify(source, seq, &nth);
}

void source_message(const struct source *source, uint64_t seq, struct message *out)
{
    uint64_t nth;
    uint32_t tag = (uint32_t)(seq % source->tags);
    out->seq = seq;
    out->seed = source->seed;
    out->time_us = source_due_us(source, seq);
    out->field = FIELD_NONE;
    device_name(source->seed, tag, out->device);
    source_gateway_name(source->seed, tag % source->gateways, out->gateway);
    value_model(source->seed, tag, seq / source->tags, seq, out->time_us, &out->values);
    out->kind = classify(source, seq, &nth);
    if (out->kind == KIND_FAULT)
        inject(out, nth);
}
