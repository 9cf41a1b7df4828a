/* How and from where a subscriber wants its events: what is taken, and what is told to be wrong. */
#include <criterion/criterion.h>

#include "gateway/wish.h"

enum { POLICY_OF_STREAM = SLOW_DISCONNECT };

static const char *from_json(const char *data, struct subscription_wish *wish)
{
    static const char *const names[] = {"epoch", "since", "mode"};
    struct json_value values[3];
    struct wish_words words;
    *wish = (struct subscription_wish){.policy = (enum slow_policy)POLICY_OF_STREAM};
    cr_assert_eq(json_scan_object(span_text(data), JSON_DEPTH_MAX, names, 3, values, NULL), WEIR_OK,
                 "%s", data);
    const char *wrong = wish_words_of_json(&words, values[0], values[1], values[2]);
    return wrong != NULL ? wrong : wish_take(wish, &words);
}

static const char *from_query(const char *query, struct subscription_wish *wish, struct span *item)
{
    static char scratch[1024];
    struct wish_words words;
    *wish = (struct subscription_wish){.policy = (enum slow_policy)POLICY_OF_STREAM};
    cr_assert_lt(strlen(query), sizeof scratch);
    const char *wrong = wish_words_of_query(&words, item, span_text(query), scratch);
    return wrong != NULL ? wrong : wish_take(wish, &words);
}

static void assert_cursor(const struct subscription_wish *wish, uint64_t epoch, uint64_t seq)
{
    cr_assert(wish->has_cursor);
    cr_assert_eq(wish->cursor.epoch, epoch);
    cr_assert_eq(wish->cursor.seq, seq);
}

Test(wish, numbers_are_taken_without_loss_as_numbers_and_as_strings)
{
    struct subscription_wish wish;
    cr_assert_null(from_json("{\"epoch\":1700000000000000,\"since\":0}", &wish));
    assert_cursor(&wish, 1700000000000000, 0);
    cr_assert_null(
        from_json("{\"epoch\":18446744073709551615,\"since\":\"18446744073709551615\"}", &wish));
    assert_cursor(&wish, UINT64_MAX, UINT64_MAX);
    cr_assert_null(from_json("{\"epoch\":\"9007199254740993\",\"since\":9007199254740993}", &wish));
    assert_cursor(&wish, 9007199254740993, 9007199254740993);
}

Test(wish, nothing_said_and_null_leave_what_holds)
{
    static const char *const texts[] = {"{}", "{\"epoch\":null,\"since\":null,\"mode\":null}",
                                        "{\"other\":[]}"};
    struct subscription_wish wish;
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        cr_assert_null(from_json(texts[i], &wish));
        cr_assert_not(wish.has_cursor);
        cr_assert_eq((int)wish.policy, (int)POLICY_OF_STREAM);
    }
}

Test(wish, a_mode_is_one_of_three)
{
    struct subscription_wish wish;
    cr_assert_null(from_json("{\"mode\":\"latest\"}", &wish));
    cr_assert_eq(wish.policy, SLOW_LATEST);
    cr_assert_null(from_json("{\"mode\":\"lossless\"}", &wish));
    cr_assert_eq(wish.policy, SLOW_LOSSLESS);
    cr_assert_null(from_query("mode=disconnect", &wish, NULL));
    cr_assert_eq(wish.policy, SLOW_DISCONNECT);
    static const char *const wrong[] = {"{\"mode\":\"Latest\"}",  "{\"mode\":\"\"}",
                                        "{\"mode\":1}",           "{\"mode\":[]}",
                                        "{\"mode\":\"latest \"}", "{\"mode\":true}"};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++)
        cr_assert_str_eq(from_json(wrong[i], &wish), "mode is latest, lossless or disconnect");
}

Test(wish, half_a_position_and_what_is_no_whole_number_is_told)
{
    static const char *const wrong[] = {
        "{\"epoch\":1}",
        "{\"since\":1}",
        "{\"epoch\":1,\"since\":null}",
        "{\"epoch\":1,\"since\":-1}",
        "{\"epoch\":1,\"since\":1.0}",
        "{\"epoch\":1e3,\"since\":1}",
        "{\"epoch\":1,\"since\":18446744073709551616}",
        "{\"epoch\":1,\"since\":99999999999999999999999}",
        "{\"epoch\":\"\",\"since\":1}",
        "{\"epoch\":\"1 \",\"since\":1}",
        "{\"epoch\":\"+1\",\"since\":1}",
        "{\"epoch\":\"\\u0031\",\"since\":1}",
        "{\"epoch\":true,\"since\":1}",
        "{\"epoch\":{},\"since\":1}",
        "{\"epoch\":1,\"since\":[1]}",
    };
    struct subscription_wish wish;
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        const char *reason = from_json(wrong[i], &wish);
        cr_assert_not_null(reason, "%s", wrong[i]);
        cr_assert_str_eq(reason, "epoch and since are whole numbers, both or neither");
    }
}

Test(wish, a_query_is_decoded_and_what_is_not_ours_is_passed_over)
{
    struct subscription_wish wish;
    struct span item;
    cr_assert_null(
        from_query("token=%zz&epoch=%312&since=3&epoc=9&mode=lossles%73&Epoch=x", &wish, NULL));
    assert_cursor(&wish, 12, 3);
    cr_assert_eq(wish.policy, SLOW_LOSSLESS);
    cr_assert_null(from_query("id=a%2Fb+c&id=d%20&epoch=1&since=2&since=4", &wish, &item));
    assert_cursor(&wish, 1, 4);
    cr_assert(span_equal(item, SPAN_LITERAL("d ")));
    cr_assert_null(from_query("id=", &wish, &item));
    cr_assert_not_null(item.data);
    cr_assert_eq(item.bytes, 0u);
    cr_assert_null(from_query("", &wish, &item));
    cr_assert_null(item.data);
    cr_assert_not(wish.has_cursor);
    cr_assert_null(from_query("id=%zz", &wish, NULL), "an id is somebody else's here");
}

Test(wish, a_query_that_is_wrong_is_told)
{
    static const char *const wrong[] = {
        "epoch=1",   "since=1",  "epoch=&since=",     "epoch&since", "epoch=1&since=a", "mode=",
        "mode=fast", "mode=%l1", "epoch=%ff&since=1", "id=%ff",      "epoch=1&since=%"};
    struct subscription_wish wish;
    struct span item;
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++)
        cr_assert_not_null(from_query(wrong[i], &wish, &item), "%s", wrong[i]);
}
