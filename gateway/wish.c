#include "gateway/wish.h"

#include "gateway/head_json.h"
#include "gateway/stream_path.h"

static const char wrong_position[] = "epoch and since are whole numbers, both or neither";
static const char wrong_mode[] = "mode is latest, lossless or disconnect";
static const char wrong_escape[] = "the query has a bad percent-encoding";

/* ---- from JSON ---- */

static bool is_said(struct json_value value)
{
    return value.kind != JSON_ABSENT && value.kind != JSON_NULL;
}

/* A string without its quotes; an escape in it is none of what may stand there. */
static struct span text_of(struct json_value value)
{
    if (value.kind == JSON_STRING)
        return span_of(value.text.data + 1, value.text.bytes - 2);
    return value.text;
}

const char *wish_words_of_json(struct wish_words *words, struct json_value epoch,
                               struct json_value since, struct json_value mode)
{
    const struct json_value numbers[] = {epoch, since};
    struct span *const texts[] = {&words->epoch, &words->since};
    *words = (struct wish_words){0};
    for (unsigned i = 0; i < 2; i++) {
        if (!is_said(numbers[i]))
            continue;
        if (numbers[i].kind != JSON_NUMBER && numbers[i].kind != JSON_STRING)
            return wrong_position;
        *texts[i] = text_of(numbers[i]);
    }
    if (!is_said(mode))
        return NULL;
    if (mode.kind != JSON_STRING)
        return wrong_mode;
    words->mode = text_of(mode);
    return NULL;
}

/* ---- from a query ---- */

const char *wish_words_of_query(struct wish_words *words, struct span *item, struct span query,
                                char *scratch)
{
    *words = (struct wish_words){0};
    if (item != NULL)
        *item = (struct span){0};
    const struct {
        struct span name;
        struct span *to;
    } known[] = {
        {SPAN_LITERAL("epoch"), &words->epoch},
        {SPAN_LITERAL("since"), &words->since},
        {SPAN_LITERAL("mode"), &words->mode},
        {SPAN_LITERAL("id"), item},
    };
    struct head_pair pair;
    while (head_next_parameter(&query, &pair)) {
        struct span *to = NULL;
        for (unsigned i = 0; i < 4 && to == NULL; i++)
            to = span_equal(pair.name, known[i].name) ? known[i].to : NULL;
        size_t bytes;
        if (to == NULL)
            continue;
        if (!stream_path_decode(scratch, pair.value, &bytes))
            return wrong_escape;
        *to = span_of(scratch, bytes);
        scratch += bytes;
    }
    return NULL;
}

/* ---- into the wish ---- */

static bool take_number(struct span text, uint64_t *number)
{
    *number = 0;
    for (size_t i = 0; i < text.bytes; i++) {
        char digit = text.data[i];
        if (digit < '0' || digit > '9' || *number > (UINT64_MAX - (uint64_t)(digit - '0')) / 10)
            return false;
        *number = *number * 10 + (uint64_t)(digit - '0');
    }
    return text.bytes > 0;
}

static bool take_mode(struct span text, enum slow_policy *policy)
{
    static const char *const names[] = {
        [SLOW_LATEST] = "latest", [SLOW_LOSSLESS] = "lossless", [SLOW_DISCONNECT] = "disconnect"};
    for (unsigned i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (!span_equal(text, span_text(names[i])))
            continue;
        *policy = (enum slow_policy)i;
        return true;
    }
    return false;
}

const char *wish_take(struct subscription_wish *wish, const struct wish_words *words)
{
    bool has_epoch = words->epoch.data != NULL, has_since = words->since.data != NULL;
    if (has_epoch != has_since)
        return wrong_position;
    if (has_epoch && (!take_number(words->epoch, &wish->cursor.epoch) ||
                      !take_number(words->since, &wish->cursor.seq)))
        return wrong_position;
    wish->has_cursor = has_epoch;
    if (words->mode.data != NULL && !take_mode(words->mode, &wish->policy))
        return wrong_mode;
    return NULL;
}
