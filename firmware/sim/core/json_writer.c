/* Flat JSON object writer, see json_writer.h for the story. */
#include "json_writer.h"

/* Copies runs of harmless characters at once; UTF-8 passes as it is. */
static void escaped(struct textbuf *out, const char *text)
{
    static const char hex[] = "0123456789abcdef";
    const char *run = text;
    tb_chr(out, '"');
    for (;; text++) {
        unsigned char c = (unsigned char)*text;
        if (c >= 0x20 && c != '"' && c != '\\')
            continue;
        tb_mem(out, run, (size_t)(text - run));
        if (c == '\0')
            break;
        run = text + 1;
        tb_chr(out, '\\');
        if (c == '"' || c == '\\') {
            tb_chr(out, (char)c);
        } else {
            tb_str(out, "u00");
            tb_chr(out, hex[c >> 4]);
            tb_chr(out, hex[c & 15]);
        }
    }
    tb_chr(out, '"');
}

static void key(struct json_writer *jw, const char *name)
{
    if (!jw->first)
        tb_chr(jw->out, ',');
    jw->first = false;
    /* Keys are literals of this program: nothing in them to escape. */
    tb_chr(jw->out, '"');
    tb_str(jw->out, name);
    tb_mem(jw->out, "\":", 2);
}

void jw_begin(struct json_writer *jw, struct textbuf *out)
{
    jw->out = out;
    jw->first = true;
    tb_chr(out, '{');
}

void jw_end(struct json_writer *jw)
{
    tb_chr(jw->out, '}');
}

void jw_string(struct json_writer *jw, const char *name, const char *value)
{
    key(jw, name);
    escaped(jw->out, value);
}

void jw_int(struct json_writer *jw, const char *name, int64_t value)
{
    key(jw, name);
    tb_i64(jw->out, value);
}

void jw_uint(struct json_writer *jw, const char *name, uint64_t value)
{
    key(jw, name);
    tb_u64(jw->out, value);
}

void jw_fixed(struct json_writer *jw, const char *name, int64_t value, unsigned decimals)
{
    key(jw, name);
    tb_fixed(jw->out, value, decimals);
}

void jw_raw(struct json_writer *jw, const char *name, const char *text)
{
    key(jw, name);
    tb_str(jw->out, text);
}
