/* ISO-8601 text from epoch microseconds, see iso_time.h for the story. */
#include "iso_time.h"

static void digits(char *out, unsigned value, int width)
{
    while (width-- > 0) {
        out[width] = (char)('0' + value % 10);
        value /= 10;
    }
}

/* Days since 1970-01-01 to year, month, day. Years begin in March here, so that the leap day is
 * the last day of a year and every 400-year era has the same shape. */
static void civil(int64_t days, unsigned *year, unsigned *month, unsigned *day)
{
    days += 719468;
    unsigned era = (unsigned)(days / 146097);
    unsigned doe = (unsigned)(days % 146097);
    unsigned yoe = (doe - doe / 1460 + doe / 36524 - doe / 146096) / 365;
    unsigned doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    unsigned mp = (5 * doy + 2) / 153;
    *day = doy - (153 * mp + 2) / 5 + 1;
    *month = mp < 10 ? mp + 3 : mp - 9;
    *year = yoe + era * 400 + (*month <= 2 ? 1 : 0);
}

void iso_time(int64_t epoch_us, char out[ISO_TIME_LEN + 1])
{
    int64_t seconds = epoch_us / 1000000;
    unsigned micros = (unsigned)(epoch_us % 1000000);
    unsigned of_day = (unsigned)(seconds % 86400);
    unsigned year, month, day;
    civil(seconds / 86400, &year, &month, &day);
    digits(out, year, 4);
    out[4] = '-';
    digits(out + 5, month, 2);
    out[7] = '-';
    digits(out + 8, day, 2);
    out[10] = 'T';
    digits(out + 11, of_day / 3600, 2);
    out[13] = ':';
    digits(out + 14, of_day / 60 % 60, 2);
    out[16] = ':';
    digits(out + 17, of_day % 60, 2);
    out[19] = '.';
    digits(out + 20, micros, 6);
    out[26] = 'Z';
    out[27] = '\0';
}
