/* The validator is one loop: every turn reads one value (after its key, in an object) and then
 * closes as many containers as end there. Which container is open is kept in an array of closing
 * brackets, so nesting costs one byte a level and no recursion. Strings are searched 16 bytes at a
 * time (SSE2) or 8 (portable); numbers are only measured, never converted, and therefore do not
 * depend on the locale. */
#include "shm/json.h"

#if defined(__SSE2__) && !defined(WEIR_JSON_PORTABLE)
#include <emmintrin.h>
#define JSON_SSE2 1
#else
#define JSON_SSE2 0
#endif

#define LIKELY(condition) __builtin_expect(!!(condition), 1)
#define UNLIKELY(condition) __builtin_expect(!!(condition), 0)
#define ALWAYS_INLINE inline __attribute__((always_inline))

/* A depth_max above this counts as this: the bracket stack is on the C stack. */
enum { DEPTH_CEILING = 1024 };

/* The decimal exponent of the largest double, and 2^1024 - 2^970: the smallest magnitude that
 * rounds to infinity (IEEE 754-2019 section 4.3.1; the largest double plus half a unit in its last
 * place). */
enum { DOUBLE_EXPONENT_MAX = 308, OVERFLOW_DIGITS = DOUBLE_EXPONENT_MAX + 1 };
static const char overflow_threshold[OVERFLOW_DIGITS + 1] =
    "17976931348623158079372897140530341507993413271003782693617377898044496829276475"
    "09466490179775872070963302864166928879109465555478519404026306574886715058206819"
    "08902000708383676273854845817711531764475730270069855571366959622842914819860834"
    "936475292719074168444365510704342711559699508093042880177904174497792";

struct failure {
    enum weir_status status;
    const char *at;
    const char *reason;
};

static const char *fail(struct failure *failure, const char *at, const char *reason)
    __attribute__((cold, noinline));
static const char *fail(struct failure *failure, const char *at, const char *reason)
{
    *failure = (struct failure){WEIR_CORRUPT, at, reason};
    return NULL;
}

static inline bool is_space(char byte)
{
    return byte == ' ' || byte == '\t' || byte == '\n' || byte == '\r';
}

static inline bool is_digit(char byte)
{
    return (unsigned char)(byte - '0') <= 9;
}

/* A byte that a string scan has to look at: quote, backslash, control character or not ASCII. */
static inline bool is_special(char byte)
{
    unsigned char value = (unsigned char)byte;
    return value < 0x20 || value >= 0x80 || value == '"' || value == '\\';
}

/* ---- searching ---- */

#define EACH_BYTE(byte) (0x0101010101010101ull * (byte))

static inline uint64_t load_word(const char *p)
{
    uint64_t word;
    memcpy(&word, p, sizeof word);
    return word;
}

/* Non-zero when some byte of `word` is zero (exact as a yes or no; which one is left to the
 * caller). */
static inline uint64_t word_has_zero(uint64_t word)
{
    return (word - EACH_BYTE(0x01)) & ~word & EACH_BYTE(0x80);
}

static inline bool word_has_special(uint64_t word)
{
    uint64_t control = (word - EACH_BYTE(0x20)) & ~word;
    return (((control | word) & EACH_BYTE(0x80)) | word_has_zero(word ^ EACH_BYTE('"')) |
            word_has_zero(word ^ EACH_BYTE('\\'))) != 0;
}

/* First special byte in [p, end), or `end`. */
static ALWAYS_INLINE const char *find_special(const char *p, const char *end)
{
#if JSON_SSE2
    const __m128i quote = _mm_set1_epi8('"');
    const __m128i backslash = _mm_set1_epi8('\\');
    const __m128i control = _mm_set1_epi8(0x1f);
    while (end - p >= 16) {
        __m128i block = _mm_loadu_si128((const __m128i *)(const void *)p);
        __m128i found =
            _mm_or_si128(_mm_cmpeq_epi8(block, quote), _mm_cmpeq_epi8(block, backslash));
        found = _mm_or_si128(found, _mm_cmpeq_epi8(_mm_min_epu8(block, control), block));
        /* movemask takes the top bits, so the block itself marks the bytes that are not ASCII. */
        unsigned mask = (unsigned)_mm_movemask_epi8(_mm_or_si128(found, block));
        if (mask != 0)
            return p + __builtin_ctz(mask);
        p += 16;
    }
#endif
    while (end - p >= 8 && !word_has_special(load_word(p)))
        p += 8;
    while (p < end && !is_special(*p))
        p++;
    return p;
}

/* First byte in [p, end) that is not ASCII, or `end`. */
static inline const char *find_not_ascii(const char *p, const char *end)
{
#if JSON_SSE2
    while (end - p >= 16) {
        int mask = _mm_movemask_epi8(_mm_loadu_si128((const __m128i *)(const void *)p));
        if (mask != 0)
            return p + __builtin_ctz((unsigned)mask);
        p += 16;
    }
#endif
    while (end - p >= 8 && (load_word(p) & EACH_BYTE(0x80)) == 0)
        p += 8;
    while (p < end && (unsigned char)*p < 0x80)
        p++;
    return p;
}

/* ---- UTF-8 (RFC 3629 section 4) ---- */

/* The range of a sequence's second byte, by its first byte; the ones behind it are 80..BF. */
static unsigned utf8_sequence_bytes(unsigned char first, unsigned char *low, unsigned char *high)
{
    *low = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
    *high = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
    if (first >= 0xC2 && first <= 0xDF)
        return 2;
    if (first >= 0xE0 && first <= 0xEF)
        return 3;
    if (first >= 0xF0 && first <= 0xF4)
        return 4;
    return 0;
}

/* Pass over the run of sequences at p; NULL and *bad when one is ill-formed. */
static const char *skip_utf8(const char *p, const char *end, const char **bad)
{
    while (p < end && (unsigned char)*p >= 0x80) {
        unsigned char low;
        unsigned char high;
        unsigned bytes = utf8_sequence_bytes((unsigned char)*p, &low, &high);
        *bad = p;
        if (bytes == 0)
            return NULL;
        for (unsigned index = 1; index < bytes; index++) {
            *bad = p + index;
            if (p + index == end || (unsigned char)p[index] < low || (unsigned char)p[index] > high)
                return NULL;
            low = 0x80;
            high = 0xBF;
        }
        p += bytes;
    }
    return p;
}

bool json_is_utf8(struct span text)
{
    if (text.bytes == 0)
        return true;
    const char *end = text.data + text.bytes;
    const char *bad;
    for (const char *p = find_not_ascii(text.data, end); p < end; p = find_not_ascii(p, end)) {
        p = skip_utf8(p, end, &bad);
        if (p == NULL)
            return false;
    }
    return true;
}

/* ---- strings ---- */

static int hex_value(char digit)
{
    if (is_digit(digit))
        return digit - '0';
    char lower = (char)(digit | 0x20);
    return lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : -1;
}

/* Four hex digits at p; negative when there are fewer before `end`, and then *bad. */
static int32_t hex_read(const char *p, const char *end, const char **bad)
{
    int32_t value = 0;
    for (int index = 0; index < 4; index++) {
        int digit = p + index < end ? hex_value(p[index]) : -1;
        if (digit < 0) {
            *bad = p + index;
            return -1;
        }
        value = value * 16 + digit;
    }
    return value;
}

static const char *scan_unicode_escape(const char *p, const char *end, struct failure *failure)
{
    static const char lone[] = "a surrogate escape without its other half";
    const char *bad;
    int32_t unit = hex_read(p + 2, end, &bad);
    if (unit < 0)
        return fail(failure, bad, "\\u needs four hexadecimal digits");
    if (unit >= 0xDC00 && unit <= 0xDFFF)
        return fail(failure, p, lone);
    if (unit < 0xD800 || unit > 0xDBFF)
        return p + 6;
    if (end - p < 8 || p[6] != '\\' || p[7] != 'u')
        return fail(failure, p + 6, lone);
    int32_t second = hex_read(p + 8, end, &bad);
    if (second < 0)
        return fail(failure, bad, "\\u needs four hexadecimal digits");
    if (second < 0xDC00 || second > 0xDFFF)
        return fail(failure, p + 6, lone);
    return p + 12;
}

/* p is at a backslash. */
static const char *scan_escape(const char *p, const char *end, struct failure *failure)
{
    if (end - p < 2)
        return fail(failure, end, "the text ends inside a string");
    switch (p[1]) {
    case '"':
    case '\\':
    case '/':
    case 'b':
    case 'f':
    case 'n':
    case 'r':
    case 't':
        return p + 2;
    case 'u':
        return scan_unicode_escape(p, end, failure);
    default:
        return fail(failure, p + 1, "an unknown escape");
    }
}

static const char *scan_special(const char *p, const char *end, bool *has_escape,
                                struct failure *failure)
{
    if (*p == '\\') {
        *has_escape = true;
        return scan_escape(p, end, failure);
    }
    if ((unsigned char)*p < 0x80)
        return fail(failure, p, "a control character inside a string");
    const char *bad = p;
    const char *after = skip_utf8(p, end, &bad);
    return after != NULL ? after : fail(failure, bad, "not UTF-8");
}

/* p is behind the opening quote; returns the place behind the closing one. */
static ALWAYS_INLINE const char *scan_string(const char *p, const char *end, bool *has_escape,
                                             struct failure *failure)
{
    *has_escape = false;
    for (;;) {
        p = find_special(p, end);
        if (UNLIKELY(p == end))
            return fail(failure, p, "the text ends inside a string");
        if (LIKELY(*p == '"'))
            return p + 1;
        p = scan_special(p, end, has_escape, failure);
        if (UNLIKELY(p == NULL))
            return NULL;
    }
}

/* ---- numbers ---- */

/* Is the number whose digits start at `digit` (a non-zero one, worth 10^308) too large for a
 * double? The digits may contain one point. */
static bool exceeds_double(const char *digit, const char *end)
{
    for (int index = 0; index < OVERFLOW_DIGITS; index++) {
        if (digit < end && *digit == '.')
            digit++;
        char value = digit < end && is_digit(*digit) ? *digit++ : '0';
        if (value != overflow_threshold[index])
            return value > overflow_threshold[index];
    }
    return true;
}

static const char *skip_digits(const char *p, const char *end)
{
    while (p < end && is_digit(*p))
        p++;
    return p;
}

/* Decimal exponent of the first non-zero digit of [integer, end), a validated mantissa; false when
 * all are zero. */
static bool mantissa_exponent(const char *integer, const char *end, int64_t *exponent,
                              const char **digit)
{
    const char *point = skip_digits(integer, end);
    if (*integer != '0') {
        *digit = integer;
        *exponent = point - integer - 1;
        return true;
    }
    for (const char *p = point + 1; p < end; p++) {
        if (*p != '0') {
            *digit = p;
            *exponent = point - p;
            return true;
        }
    }
    return false;
}

/* The exponent's value at p (behind 'e'), held to a range in which sums with a text's length cannot
 * overflow. */
static const char *scan_exponent(const char *p, const char *end, int64_t *exponent,
                                 struct failure *failure)
{
    const int64_t ceiling = (int64_t)1 << 60;
    bool negative = p < end && *p == '-';
    if (p < end && (*p == '-' || *p == '+'))
        p++;
    if (p == end || !is_digit(*p))
        return fail(failure, p, "a digit is missing in an exponent");
    *exponent = 0;
    for (; p < end && is_digit(*p); p++) {
        if (*exponent < ceiling / 16)
            *exponent = *exponent * 10 + (*p - '0');
    }
    if (negative)
        *exponent = -*exponent;
    return p;
}

/* The part of a number behind its integer digits [integer, p), and the check of its magnitude. */
static __attribute__((noinline)) const char *
scan_number_rest(const char *integer, const char *p, const char *end, struct failure *failure)
{
    int64_t exponent = 0;
    if (p < end && *p == '.') {
        p++;
        if (p == end || !is_digit(*p))
            return fail(failure, p, "a digit is missing behind a decimal point");
        p = skip_digits(p, end);
    }
    const char *mantissa_end = p;
    if (p < end && (*p == 'e' || *p == 'E')) {
        p = scan_exponent(p + 1, end, &exponent, failure);
        if (p == NULL)
            return NULL;
    }
    int64_t first_exponent;
    const char *digit;
    if (!mantissa_exponent(integer, mantissa_end, &first_exponent, &digit))
        return p;
    exponent += first_exponent;
    if (exponent < DOUBLE_EXPONENT_MAX)
        return p;
    if (exponent > DOUBLE_EXPONENT_MAX || exceeds_double(digit, mantissa_end))
        return fail(failure, integer, "a number too large for a double");
    return p;
}

/* p is at a minus sign or a digit. */
static ALWAYS_INLINE const char *scan_number(const char *p, const char *end,
                                             struct failure *failure)
{
    if (*p == '-')
        p++;
    if (UNLIKELY(p == end || !is_digit(*p)))
        return fail(failure, p, "a digit is missing behind a minus sign");
    const char *integer = p;
    if (*p == '0') {
        p++;
        if (UNLIKELY(p < end && is_digit(*p)))
            return fail(failure, p, "a number with a leading zero");
    } else {
        while (p < end && is_digit(*p))
            p++;
    }
    if (p < end && (*p == '.' || *p == 'e' || *p == 'E'))
        return scan_number_rest(integer, p, end, failure);
    if (UNLIKELY(p - integer > DOUBLE_EXPONENT_MAX))
        return scan_number_rest(integer, p, end, failure);
    return p;
}

static const char *scan_word(const char *p, const char *end, struct span word,
                             struct failure *failure)
{
    if ((size_t)(end - p) >= word.bytes && memcmp(p, word.data, word.bytes) == 0)
        return p + word.bytes;
    size_t index = 0;
    while (p + index < end && p[index] == word.data[index])
        index++;
    return fail(failure, p + index, "not a JSON value");
}

/* ---- the validator ---- */

/* Where the scan is and what it has met. `space_runs` counts runs of insignificant white space: a
 * value has some exactly when the count differs between its first and its last byte. */
struct scan {
    const char *end;
    uint64_t space_runs;
    struct failure failure;
};

static ALWAYS_INLINE const char *skip_space(struct scan *scan, const char *p)
{
    if (LIKELY(p < scan->end && (unsigned char)*p > ' '))
        return p;
    const char *start = p;
    while (p < scan->end && is_space(*p))
        p++;
    scan->space_runs += p != start;
    return p;
}

/* The index of the name that equals the key [p, end) (without quotes), or name_count. */
static inline size_t find_name(const char *p, const char *end, bool has_escape,
                               const char *const *names, size_t name_count)
{
    size_t bytes = (size_t)(end - p);
    for (size_t index = 0; index < name_count; index++) {
        const char *name = names[index];
        if (UNLIKELY(has_escape)) {
            struct json_value key = {{p - 1, bytes + 2}, JSON_STRING, false, true};
            if (json_string_equals(key, span_text(name)))
                return index;
        } else if (name[0] == *p || bytes == 0) {
            /* A key holds no NUL byte, so the comparison stops at the end of a shorter name. */
            if (strncmp(name, p, bytes) == 0 && name[bytes] == '\0')
                return index;
        }
    }
    return name_count;
}

/* p is at the first byte of a value that is neither object nor array. */
static ALWAYS_INLINE const char *scan_scalar(struct scan *scan, const char *p, bool *has_escape)
{
    switch (*p) {
    case '"':
        return scan_string(p + 1, scan->end, has_escape, &scan->failure);
    case 't':
        return scan_word(p, scan->end, SPAN_LITERAL("true"), &scan->failure);
    case 'f':
        return scan_word(p, scan->end, SPAN_LITERAL("false"), &scan->failure);
    case 'n':
        return scan_word(p, scan->end, SPAN_LITERAL("null"), &scan->failure);
    case '-':
    case '0':
    case '1':
    case '2':
    case '3':
    case '4':
    case '5':
    case '6':
    case '7':
    case '8':
    case '9':
        return scan_number(p, scan->end, &scan->failure);
    default:
        return fail(&scan->failure, p, "not a JSON value");
    }
}

/* A member's key and colon; *key_end is behind the key's closing quote. p is at what should be the
 * opening one. */
static ALWAYS_INLINE const char *scan_key(struct scan *scan, const char *p, const char **key_end,
                                          bool *has_escape)
{
    if (UNLIKELY(p == scan->end || *p != '"'))
        return fail(&scan->failure, p, "a key in quotes is missing");
    p = scan_string(p + 1, scan->end, has_escape, &scan->failure);
    if (UNLIKELY(p == NULL))
        return NULL;
    *key_end = p;
    p = skip_space(scan, p);
    if (UNLIKELY(p == scan->end || *p != ':'))
        return fail(&scan->failure, p, "a colon is missing behind a key");
    return p + 1;
}

/* What the caller of the scan wants from a root object. */
struct wanted {
    const char *const *names;
    size_t name_count;
    struct json_value *values;
    const char *duplicate; /* the first key that came twice, or NULL */
};

/* Where to note the member whose key is [key, key_end) with its quotes; NULL when nobody wants it. */
static inline struct json_value *find_slot(struct wanted *wanted, const char *key,
                                           const char *key_end, bool has_escape)
{
    size_t index = find_name(key + 1, key_end - 1, has_escape, wanted->names, wanted->name_count);
    if (index == wanted->name_count)
        return NULL;
    if (wanted->values[index].kind != JSON_ABSENT) {
        if (wanted->duplicate == NULL)
            wanted->duplicate = key;
        return NULL;
    }
    return &wanted->values[index];
}

/* Validates the value at p; NULL and scan->failure when it is refused, else the place behind it. *last_escape: the
 * last scalar read was a string with an escape. */
static ALWAYS_INLINE const char *scan_value(struct scan *scan, const char *p, unsigned depth_max,
                                            struct wanted *wanted, bool *last_escape)
{
    char closers[DEPTH_CEILING + 1]; /* closers[depth] ends the innermost open container */
    unsigned depth = 0;
    struct json_value *slot = NULL; /* for the member of the root object being read */
    uint64_t slot_space_runs = 0;

    closers[0] = '\0';
    for (;;) { /* one turn a value: bounded by the text, every turn consumes a byte */
        bool has_escape = false;
        if (closers[depth] == '}') {
            p = skip_space(scan, p);
            const char *key = p;
            const char *key_end = p;
            p = scan_key(scan, p, &key_end, &has_escape);
            if (UNLIKELY(p == NULL))
                return NULL;
            if (depth == 1 && wanted->name_count > 0)
                slot = find_slot(wanted, key, key_end, has_escape);
            has_escape = false;
        }
        p = skip_space(scan, p);
        if (UNLIKELY(p == scan->end))
            return fail(&scan->failure, p, "a value is missing at the end of the text");
        if (depth == 1 && slot != NULL) {
            slot->text.data = p;
            slot->kind = json_kind_of(*p);
            slot_space_runs = scan->space_runs;
        }
        if (*p == '{' || *p == '[') {
            if (UNLIKELY(depth == depth_max)) {
                (void)fail(&scan->failure, p, "nested too deeply");
                scan->failure.status = WEIR_TOO_LARGE;
                return NULL;
            }
            closers[++depth] = *p == '{' ? '}' : ']';
            p = skip_space(scan, p + 1);
            if (p == scan->end || *p != closers[depth])
                continue;
            p++;
            depth--;
        } else {
            p = scan_scalar(scan, p, &has_escape);
            if (UNLIKELY(p == NULL))
                return NULL;
        }
        for (;;) { /* a value has ended at p; each turn but the last closes a container */
            if (depth == 1 && slot != NULL) {
                slot->text.bytes = (size_t)(p - slot->text.data);
                slot->has_space = scan->space_runs != slot_space_runs;
                slot->has_escape = has_escape && slot->kind == JSON_STRING;
            }
            if (depth == 0) {
                *last_escape = has_escape;
                return p;
            }
            p = skip_space(scan, p);
            if (UNLIKELY(p == scan->end))
                return fail(&scan->failure, p, "the text ends inside an object or array");
            if (*p == ',') {
                p++;
                break;
            }
            if (UNLIKELY(*p != closers[depth]))
                return fail(&scan->failure, p,
                            "neither a comma nor the end of the object or array");
            p++;
            depth--;
        }
    }
}

static enum weir_status refuse(struct json_problem *problem, struct span text, const char *at,
                               const char *reason, enum weir_status status)
{
    if (problem != NULL)
        *problem = (struct json_problem){(size_t)(at - text.data), reason};
    return status;
}

static ALWAYS_INLINE enum weir_status scan_text(struct span text, unsigned depth_max,
                                                struct wanted *wanted, struct json_value *root,
                                                struct json_problem *problem)
{
    *root = (struct json_value){0};
    if (text.bytes == 0)
        return refuse(problem, text, text.data, "the text is empty", WEIR_CORRUPT);
    struct scan scan = {.end = text.data + text.bytes};
    const char *start = skip_space(&scan, text.data);
    if (start == scan.end)
        return refuse(problem, text, start, "the text is only white space", WEIR_CORRUPT);
    if (depth_max > DEPTH_CEILING)
        depth_max = DEPTH_CEILING;
    scan.space_runs = 0;
    bool last_escape = false;
    const char *end = scan_value(&scan, start, depth_max, wanted, &last_escape);
    if (end == NULL)
        return refuse(problem, text, scan.failure.at, scan.failure.reason, scan.failure.status);
    bool has_space = scan.space_runs != 0;
    const char *rest = skip_space(&scan, end);
    if (rest != scan.end)
        return refuse(problem, text, rest, "text behind the value", WEIR_CORRUPT);
    root->text = span_of(start, (size_t)(end - start));
    root->kind = json_kind_of(*start);
    root->has_space = has_space;
    root->has_escape = last_escape && root->kind == JSON_STRING;
    return WEIR_OK;
}

enum weir_status json_scan(struct span text, unsigned depth_max, struct json_value *value,
                           struct json_problem *problem)
{
    struct wanted nothing = {0};
    return scan_text(text, depth_max, &nothing, value, problem);
}

enum weir_status json_scan_object(struct span text, unsigned depth_max, const char *const *names,
                                  size_t name_count, struct json_value *values,
                                  struct json_problem *problem)
{
    for (size_t index = 0; index < name_count; index++)
        values[index] = (struct json_value){0};
    struct wanted wanted = {.names = names, .name_count = name_count, .values = values};
    struct json_value root;
    enum weir_status status = scan_text(text, depth_max, &wanted, &root, problem);
    if (status != WEIR_OK)
        return status;
    if (root.kind != JSON_OBJECT)
        return refuse(problem, text, root.text.data, "not an object", WEIR_INVALID);
    if (wanted.duplicate != NULL)
        return refuse(problem, text, wanted.duplicate, "a key that comes twice", WEIR_INVALID);
    return WEIR_OK;
}

/* ---- reading validated text; still never beyond its end, so a wrong call cannot harm ---- */

/* p is behind an opening quote; returns the place behind the closing one, or `end`. */
static const char *pass_string(const char *p, const char *end, bool *has_escape)
{
    *has_escape = false;
    while (p < end) {
        p = find_special(p, end);
        if (p == end)
            return end;
        if (*p == '"')
            return p + 1;
        if (*p == '\\') {
            *has_escape = true;
            p += end - p >= 2 ? 2 : 1;
        } else {
            p++;
        }
    }
    return end;
}

static const char *pass_space(const char *p, const char *end)
{
    while (p < end && is_space(*p))
        p++;
    return p;
}

static const char *pass_container(const char *p, const char *end, bool *has_space)
{
    size_t depth = 0;
    bool has_escape;
    while (p < end) {
        char byte = *p++;
        if (byte == '"') {
            p = pass_string(p, end, &has_escape);
        } else if (byte == '{' || byte == '[') {
            depth++;
        } else if (byte == '}' || byte == ']') {
            if (--depth == 0)
                break;
        } else if (is_space(byte)) {
            *has_space = true;
        }
    }
    return p;
}

static bool ends_scalar(char byte)
{
    return byte == ',' || byte == '}' || byte == ']' || byte == ':' || is_space(byte);
}

static const char *pass_value(const char *p, const char *end, struct json_value *value)
{
    const char *start = p;
    *value = (struct json_value){.kind = json_kind_of(*p)};
    if (value->kind == JSON_OBJECT || value->kind == JSON_ARRAY) {
        p = pass_container(p, end, &value->has_space);
    } else if (value->kind == JSON_STRING) {
        p = pass_string(p + 1, end, &value->has_escape);
    } else {
        while (p < end && !ends_scalar(*p))
            p++;
    }
    value->text = span_of(start, (size_t)(p - start));
    return p;
}

enum weir_status json_next(struct json_value container, size_t *cursor, struct json_value *key,
                           struct json_value *value)
{
    bool is_object = container.kind == JSON_OBJECT;
    if ((!is_object && container.kind != JSON_ARRAY) || container.text.bytes < 2 ||
        *cursor >= container.text.bytes)
        return WEIR_INVALID;
    const char *end = container.text.data + container.text.bytes - 1; /* the closing bracket */
    const char *p = pass_space(container.text.data + (*cursor == 0 ? 1 : *cursor), end);
    if (p < end && *cursor != 0 && *p == ',')
        p = pass_space(p + 1, end);
    struct json_value member = {0};
    if (is_object && p < end) {
        p = pass_space(pass_value(p, end, &member), end);
        if (p == end || *p != ':')
            return WEIR_CORRUPT;
        p = pass_space(p + 1, end);
        if (p == end)
            return WEIR_CORRUPT;
    }
    if (p >= end) {
        *cursor = container.text.bytes - 1;
        return WEIR_EMPTY;
    }
    const char *after = pass_value(p, end, value);
    if (after == p)
        return WEIR_CORRUPT;
    *cursor = (size_t)(after - container.text.data);
    if (key != NULL)
        *key = member;
    return WEIR_OK;
}

size_t json_compact(char *out, struct json_value value)
{
    if (value.text.bytes == 0)
        return 0;
    if (!value.has_space) {
        memcpy(out, value.text.data, value.text.bytes);
        return value.text.bytes;
    }
    const char *end = value.text.data + value.text.bytes;
    size_t bytes = 0;
    for (const char *p = value.text.data; p < end;) {
        const char *run = p;
        bool has_escape;
        while (p < end && !is_space(*p))
            p = *p == '"' ? pass_string(p + 1, end, &has_escape) : p + 1;
        memcpy(out + bytes, run, (size_t)(p - run));
        bytes += (size_t)(p - run);
        p = pass_space(p, end);
    }
    return bytes;
}

/* ---- escapes ---- */

static size_t utf8_write(char *out, uint32_t point)
{
    if (point < 0x80) {
        out[0] = (char)point;
        return 1;
    }
    if (point < 0x800) {
        out[0] = (char)(0xC0 | point >> 6);
        out[1] = (char)(0x80 | (point & 0x3F));
        return 2;
    }
    if (point < 0x10000) {
        out[0] = (char)(0xE0 | point >> 12);
        out[1] = (char)(0x80 | (point >> 6 & 0x3F));
        out[2] = (char)(0x80 | (point & 0x3F));
        return 3;
    }
    out[0] = (char)(0xF0 | point >> 18);
    out[1] = (char)(0x80 | (point >> 12 & 0x3F));
    out[2] = (char)(0x80 | (point >> 6 & 0x3F));
    out[3] = (char)(0x80 | (point & 0x3F));
    return 4;
}

static char escaped_byte(char letter)
{
    switch (letter) {
    case 'b':
        return '\b';
    case 'f':
        return '\f';
    case 'n':
        return '\n';
    case 'r':
        return '\r';
    case 't':
        return '\t';
    default:
        return letter;
    }
}

/* Decode the escape at p (a backslash, *p inside validated text) to at most 4 bytes; *after is
 * behind it. */
static size_t decode_escape(char out[4], const char *p, const char *end, const char **after)
{
    const char *bad;
    if (end - p < 2) {
        *after = end;
        return 0;
    }
    if (p[1] != 'u') {
        *after = p + 2;
        out[0] = escaped_byte(p[1]);
        return 1;
    }
    int32_t unit = hex_read(p + 2, end, &bad);
    if (unit < 0) {
        *after = end;
        return 0;
    }
    *after = p + 6;
    if (unit < 0xD800 || unit > 0xDBFF)
        return utf8_write(out, (uint32_t)unit);
    int32_t second = end - p >= 12 ? hex_read(p + 8, end, &bad) : -1;
    if (second < 0xDC00 || second > 0xDFFF) {
        *after = end;
        return 0;
    }
    *after = p + 12;
    return utf8_write(out, 0x10000 + (((uint32_t)unit & 0x3FF) << 10) + ((uint32_t)second & 0x3FF));
}

/* The bytes between the quotes. */
static struct span string_inside(struct json_value string)
{
    if (string.text.bytes < 2)
        return (struct span){0};
    return span_of(string.text.data + 1, string.text.bytes - 2);
}

size_t json_unescape(char *out, struct json_value string)
{
    struct span inside = string_inside(string);
    if (inside.bytes == 0)
        return 0;
    const char *end = inside.data + inside.bytes;
    size_t bytes = 0;
    for (const char *p = inside.data; p < end;) {
        const char *run_end = memchr(p, '\\', (size_t)(end - p));
        if (run_end == NULL)
            run_end = end;
        memcpy(out + bytes, p, (size_t)(run_end - p));
        bytes += (size_t)(run_end - p);
        p = run_end;
        if (p < end)
            bytes += decode_escape(out + bytes, p, end, &p);
    }
    return bytes;
}

struct span json_decode(struct json_value value, struct buffer *scratch)
{
    if (value.kind != JSON_STRING)
        return (struct span){0};
    if (!value.has_escape)
        return span_of(value.text.data + 1, value.text.bytes - 2);
    weir_assert(scratch->capacity_bytes - scratch->bytes >= value.text.bytes);
    char *text = scratch->data + scratch->bytes;
    size_t bytes = json_unescape(text, value);
    scratch->bytes += bytes;
    return span_of(text, bytes);
}

bool json_string_equals(struct json_value string, struct span text)
{
    struct span inside = string_inside(string);
    if (!string.has_escape)
        return span_equal(inside, text);
    const char *end = inside.data + inside.bytes;
    size_t matched = 0;
    for (const char *p = inside.data; p < end;) {
        char decoded[4];
        size_t bytes = 1;
        if (*p == '\\')
            bytes = decode_escape(decoded, p, end, &p);
        else
            decoded[0] = *p++;
        if (bytes > text.bytes - matched || memcmp(decoded, text.data + matched, bytes) != 0)
            return false;
        matched += bytes;
    }
    return matched == text.bytes;
}

/* The first byte in [p, end) that json_escape() has to change, or `end`. */
static const char *find_escapable(const char *p, const char *end)
{
    for (;;) {
        p = find_special(p, end);
        if (p == end || (unsigned char)*p < 0x80)
            return p;
        while (p < end && (unsigned char)*p >= 0x80)
            p++;
    }
}

/* The letter behind the backslash of a control character, quote or backslash; 'u' when there is no
 * short form. */
static char escape_letter(char byte)
{
    switch (byte) {
    case '\b':
        return 'b';
    case '\f':
        return 'f';
    case '\n':
        return 'n';
    case '\r':
        return 'r';
    case '\t':
        return 't';
    case '"':
    case '\\':
        return byte;
    default:
        return 'u';
    }
}

static size_t escape_byte(char *out, char byte)
{
    static const char digits[] = "0123456789abcdef";
    out[0] = '\\';
    out[1] = escape_letter(byte);
    if (out[1] != 'u')
        return 2;
    out[2] = '0';
    out[3] = '0';
    out[4] = digits[(unsigned char)byte >> 4];
    out[5] = digits[byte & 15];
    return 6;
}

size_t json_escape(char *out, struct span text)
{
    if (text.bytes == 0)
        return 0;
    const char *end = text.data + text.bytes;
    size_t bytes = 0;
    for (const char *p = text.data; p < end;) {
        const char *run_end = find_escapable(p, end);
        memcpy(out + bytes, p, (size_t)(run_end - p));
        bytes += (size_t)(run_end - p);
        p = run_end;
        if (p < end)
            bytes += escape_byte(out + bytes, *p++);
    }
    return bytes;
}

/* Exactly what json_escape() will write, so that a buffer near its limit is not refused for the
 * worst case. */
static size_t escaped_bytes(struct span text)
{
    if (text.bytes == 0)
        return 0;
    const char *end = text.data + text.bytes;
    size_t bytes = text.bytes;
    for (const char *p = find_escapable(text.data, end); p < end; p = find_escapable(p + 1, end))
        bytes += escape_letter(*p) == 'u' ? 5 : 1;
    return bytes;
}

enum weir_status json_append_string(struct buffer *buffer, struct span text)
{
    size_t bytes = escaped_bytes(text) + 2;
    enum weir_status status = buffer_reserve(buffer, bytes);
    if (status != WEIR_OK)
        return status;
    char *out = buffer->data + buffer->bytes;
    out[0] = '"';
    (void)json_escape(out + 1, text);
    out[bytes - 1] = '"';
    buffer->bytes += bytes;
    return WEIR_OK;
}
