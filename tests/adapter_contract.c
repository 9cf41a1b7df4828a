/* The suite every adapter passes. An adapter's own test file includes this one after defining
 *
 *   static const struct adapter_kind *contract_kind(void);
 *   static void contract_wait(void);     // give an asynchronous adapter's completions time; kv: nothing
 *   static void contract_before_list(void);
 *   static void contract_setup(void), contract_teardown(void);   // fill `environment`
 */

enum { CONTRACT_MAX = 4096 };

struct contract_completion {
    uint64_t request;
    enum weir_status status;
    bool existed;
    uint64_t seq;
    uint64_t timestamp_ms;
    char text[256];  /* old value, or the answer */
    char value[256]; /* new value */
    char errors[256];
};

static struct adapter_environment environment;
static struct adapter *adapter;
static struct contract_completion completions[CONTRACT_MAX];
static unsigned completion_count;

static void contract_copy(char *out, struct span text)
{
    cr_assert_lt(text.bytes, 256);
    if (text.bytes > 0)
        memcpy(out, text.data, text.bytes);
    out[text.bytes] = 0;
}

static void contract_published(const struct store_change *change);

static void contract_written(void *context, uint64_t request, const struct adapter_write *write,
                             const struct adapter_outcome *outcome)
{
    const struct store_change *change = outcome->change;
    enum weir_status status = outcome->status;
    (void)context;
    (void)write;
    cr_assert_lt(completion_count, CONTRACT_MAX);
    cr_assert_eq(status == WEIR_OK, change != NULL, "a change comes with success and only then");
    struct contract_completion *completion = &completions[completion_count++];
    *completion = (struct contract_completion){.request = request, .status = status};
    if (!change)
        return;
    completion->existed = change->existed;
    completion->seq = change->group.seq;
    completion->timestamp_ms = change->group.timestamp_ms;
    if (change->existed)
        contract_copy(completion->text, change->old_value);
    contract_copy(completion->value, outcome->value);
    contract_copy(completion->errors, outcome->errors);
    contract_published(change);
}

static const char *contract_write_problem(void *context, const struct adapter_write *write,
                                          size_t value_bytes)
{
    (void)context;
    (void)write;
    return value_bytes > 200 ? "too large for the contract" : NULL;
}

static void contract_answered(void *context, uint64_t request,
                              const struct adapter_outcome *outcome)
{
    enum weir_status status = outcome->status;
    (void)context;
    cr_assert_lt(completion_count, CONTRACT_MAX);
    struct contract_completion *completion = &completions[completion_count++];
    *completion = (struct contract_completion){.request = request, .status = status};
    if (status == WEIR_OK)
        contract_copy(completion->text, outcome->value);
}

static void contract_open(void)
{
    struct weir_error error = {0};
    contract_setup();
    environment.value_bytes_max = 100000;
    environment.done = (struct adapter_completions){contract_written, contract_answered,
                                                    contract_write_problem, NULL};
    cr_assert_eq(contract_kind()->open(&adapter, &environment, &error), WEIR_OK, "%s", error.text);
}

static void contract_close(void)
{
    contract_kind()->close(adapter);
    contract_teardown();
}

TestSuite(adapter_contract, .init = contract_open, .fini = contract_close, .timeout = HANG_SECONDS);

static struct store_key contract_key(const char *stream, const char *group, const char *item)
{
    return (struct store_key){span_text(stream), span_text(group),
                              item ? span_text(item) : (struct span){0}};
}

static const struct contract_completion *
contract_write(enum adapter_write_kind kind, const char *group, const char *item, const char *value)
{
    static uint64_t request = 100;
    const struct adapter_write write = {.kind = kind,
                                        .key = contract_key("s", group, item),
                                        .value = value ? span_text(value) : (struct span){0},
                                        .event_type = span_text("t"),
                                        .now_ms = 1700000000000};
    unsigned before = completion_count;
    contract_kind()->write(adapter, ++request, &write);
    contract_wait();
    cr_assert_eq(completion_count, before + 1, "exactly one completion");
    cr_assert_eq(completions[before].request, request);
    return &completions[before];
}

static const struct contract_completion *contract_read(enum adapter_read_kind kind,
                                                       const char *group, const char *item)
{
    const struct adapter_read read = {.kind = kind, .key = contract_key("s", group, item)};
    unsigned before = completion_count;
    contract_before_list();
    contract_kind()->read(adapter, 42, &read);
    contract_wait();
    cr_assert_eq(completion_count, before + 1, "exactly one completion");
    cr_assert_eq(completions[before].request, 42);
    return &completions[before];
}

Test(adapter_contract, set_tells_the_old_value_and_numbers_writes)
{
    const struct contract_completion *first = contract_write(ADAPTER_SET, "g", "i", "{\"a\":1}");
    cr_assert_eq(first->status, WEIR_OK);
    cr_assert_not(first->existed);
    cr_assert_eq(first->seq, 1);
    const struct contract_completion *second = contract_write(ADAPTER_SET, "g", "i", "null");
    cr_assert(second->existed);
    cr_assert_str_eq(second->text, "{\"a\":1}");
    cr_assert_eq(second->seq, 2);
    cr_assert_gt(second->timestamp_ms, first->timestamp_ms);
    const struct contract_completion *other = contract_write(ADAPTER_SET, "h", "i", "1");
    cr_assert_eq(other->seq, 1, "each group counts on its own");
}

Test(adapter_contract, get_tells_missing_from_null)
{
    cr_assert_eq(contract_read(ADAPTER_GET, "g", "i")->status, WEIR_EMPTY);
    (void)contract_write(ADAPTER_SET, "g", "i", "null");
    const struct contract_completion *answer = contract_read(ADAPTER_GET, "g", "i");
    cr_assert_eq(answer->status, WEIR_OK);
    cr_assert_str_eq(answer->text, "null");
}

Test(adapter_contract, delete_of_a_missing_item_is_empty_and_takes_no_number)
{
    cr_assert_eq(contract_write(ADAPTER_DELETE, "g", "i", NULL)->status, WEIR_EMPTY);
    cr_assert_eq(contract_write(ADAPTER_SET, "g", "i", "7")->seq, 1);
    const struct contract_completion *gone = contract_write(ADAPTER_DELETE, "g", "i", NULL);
    cr_assert_eq(gone->status, WEIR_OK);
    cr_assert_str_eq(gone->text, "7");
    cr_assert_eq(gone->seq, 2);
    cr_assert_eq(contract_write(ADAPTER_DELETE, "g", "i", NULL)->status, WEIR_EMPTY);
}

Test(adapter_contract, an_event_takes_a_number_and_stores_nothing)
{
    cr_assert_eq(contract_write(ADAPTER_EVENT, "g", NULL, "{}")->seq, 1);
    cr_assert_eq(contract_write(ADAPTER_EVENT, "g", "i", "{}")->seq, 2);
    cr_assert_eq(contract_read(ADAPTER_GET, "g", "i")->status, WEIR_EMPTY);
    cr_assert_str_eq(contract_read(ADAPTER_LIST, "g", NULL)->text, "[]");
}

/* Counts as a write whatever its operations do; of a missing item it makes one. */
Test(adapter_contract, an_update_applies_its_operations_to_what_is_there)
{
    const struct contract_completion *made = contract_write(ADAPTER_UPDATE, "g", "i", "[]");
    cr_assert_eq(made->status, WEIR_OK);
    cr_assert_not(made->existed);
    cr_assert_str_eq(made->value, "{}");
    cr_assert_eq(made->seq, 1);
    const struct contract_completion *changed =
        contract_write(ADAPTER_UPDATE, "g", "i",
                       "[{\"type\":\"set\",\"path\":\"n\",\"value\":4},"
                       "{\"type\":\"append\",\"path\":\"n\",\"value\":1},"
                       "{\"type\":\"increment\",\"path\":\"n\",\"by\":3}]");
    cr_assert(changed->existed);
    cr_assert_str_eq(changed->text, "{}");
    cr_assert_str_eq(changed->value, "{\"n\":7}");
    cr_assert(strstr(changed->errors, "\"op_index\":1"), "%s", changed->errors);
    cr_assert_eq(changed->seq, 2);
    cr_assert_str_eq(contract_read(ADAPTER_GET, "g", "i")->text, "{\"n\":7}");
}

Test(adapter_contract, an_update_that_cannot_be_made_changes_nothing)
{
    static const char *const refused[] = {"[{\"type\":\"Set\",\"path\":\"n\"}]", "{}",
                                          "[{\"type\":\"increment\",\"path\":\"n\",\"by\":1.5}]"};
    char large[300] = "[{\"type\":\"set\",\"path\":\"\",\"value\":\"";
    (void)contract_write(ADAPTER_SET, "g", "i", "1");
    for (unsigned index = 0; index < 3; index++)
        cr_assert_eq(contract_write(ADAPTER_UPDATE, "g", "i", refused[index])->status,
                     WEIR_INVALID);
    memset(large + strlen(large), 'x', 220);
    strcat(large, "\"}]");
    cr_assert_eq(contract_write(ADAPTER_UPDATE, "g", "i", large)->status, WEIR_TOO_LARGE,
                 "its event could not be made");
    cr_assert_str_eq(contract_read(ADAPTER_GET, "g", "i")->text, "1");
    cr_assert_eq(contract_write(ADAPTER_SET, "g", "i", "2")->seq, 2);
}

Test(adapter_contract, lists_show_what_is_there)
{
    cr_assert_str_eq(contract_read(ADAPTER_LIST, "g", NULL)->text, "[]");
    cr_assert_str_eq(contract_read(ADAPTER_LIST_GROUPS, "g", NULL)->text, "[]");
    (void)contract_write(ADAPTER_SET, "g", "b", "1");
    (void)contract_write(ADAPTER_SET, "g", "a", "2");
    (void)contract_write(ADAPTER_SET, "f", "a", "3");
    cr_assert_str_eq(contract_read(ADAPTER_LIST, "g", NULL)->text, "[1,2]");
    cr_assert_str_eq(contract_read(ADAPTER_LIST_GROUPS, "g", NULL)->text, "[\"f\",\"g\"]");
    cr_assert_str_eq(contract_read(ADAPTER_LIST_ALL, "g", NULL)->text,
                     "{\"stream\":[{\"id\":\"s\",\"groups\":[\"f\",\"g\"]}],\"count\":1}");
    (void)contract_write(ADAPTER_DELETE, "f", "a", NULL);
    cr_assert_str_eq(contract_read(ADAPTER_LIST_GROUPS, "g", NULL)->text, "[\"g\"]");
}

/* Given back to back, writes to one group complete in their order. */
Test(adapter_contract, writes_complete_in_order)
{
    char value[32];
    unsigned before = completion_count;
    for (unsigned index = 0; index < 1000; index++) {
        snprintf(value, sizeof value, "%u", index);
        const struct adapter_write write = {.kind = ADAPTER_SET,
                                            .key = contract_key("s", "g", "i"),
                                            .value = span_text(value),
                                            .now_ms = 1700000000000};
        contract_kind()->write(adapter, index, &write);
    }
    contract_wait();
    cr_assert_eq(completion_count, before + 1000);
    for (unsigned index = 0; index < 1000; index++) {
        cr_assert_eq(completions[before + index].request, index);
        cr_assert_eq(completions[before + index].seq, index + 1);
        snprintf(value, sizeof value, "%u", index - 1);
        cr_assert(index == 0 || strcmp(completions[before + index].text, value) == 0);
    }
}
