/* config/settings: the file as the iii engine writes it, weir's own keys, and every way to get them
 * wrong. */
#include "config/settings.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <unistd.h>

static struct settings settings;
static struct weir_error error;
static char path[64];

static void start(void)
{
    settings_init(&settings);
    memset(&error, 0, sizeof error);
    (void)snprintf(path, sizeof path, "/tmp/weir-settings-XXXXXX");
    int fd = mkstemp(path);
    cr_assert_geq(fd, 0);
    (void)close(fd);
    (void)setenv("WEIR_SUPERVISED", "1", 1);
}

static void stop(void)
{
    (void)unlink(path);
    settings_fini(&settings);
}

TestSuite(settings, .init = start, .fini = stop, .timeout = HANG_SECONDS);

static enum weir_status load_bytes(const char *text, size_t bytes)
{
    FILE *file = fopen(path, "w");
    cr_assert_not_null(file);
    cr_assert_eq(fwrite(text, 1, bytes, file), bytes);
    cr_assert_eq(fclose(file), 0);
    return settings_load(&settings, path, &error);
}

static enum weir_status load(const char *text)
{
    return load_bytes(text, strlen(text));
}

static void assert_loads(const char *text)
{
    enum weir_status status = load(text);
    cr_assert_eq(status, WEIR_OK, "%s", error.text);
}

/* The error names the file, the line and what is wrong, and says what to do (something behind "; "
 * or a question). */
static void assert_refused(const char *text, unsigned line, const char *about)
{
    settings_fini(&settings);
    settings_init(&settings);
    enum weir_status status = load(text);
    cr_assert_lt((int)status, 0, "accepted: %s", text);
    char place[96];
    (void)snprintf(place, sizeof place, "%s:%u: ", path, line);
    cr_assert_eq(strncmp(error.text, place, strlen(place)), 0, "wanted %s, got: %s", place,
                 error.text);
    cr_assert_not_null(strstr(error.text, about), "wanted `%s` in: %s", about, error.text);
    cr_assert(strstr(error.text, "; ") != NULL || strchr(error.text, '?') != NULL, "no remedy: %s",
              error.text);
}

Test(settings, defaults_are_those_of_the_table)
{
    cr_assert_str_eq(settings.stream_host, "0.0.0.0");
    cr_assert_eq(settings.stream_port, 3112u);
    cr_assert_str_eq(settings.worker_host, "127.0.0.1");
    cr_assert_eq(settings.worker_port, 49134u);
    cr_assert_str_eq(settings.admin, "127.0.0.1:3114");
    cr_assert_eq(settings.ring_bytes, RING_BYTES_DEFAULT);
    cr_assert_eq(settings.io, SETTINGS_IO_AUTO);
    cr_assert_eq(settings.duplicate_deliveries, false);
}

Test(settings, an_empty_file_changes_nothing)
{
    struct settings before = settings;
    assert_loads("");
    assert_loads("# nothing\n");
    assert_loads("---\n");
    cr_assert_eq(memcmp(&before, &settings, sizeof before), 0);
}

/* covers: 10.2#1 */
/* A file of the iii engine: its two workers are read, all others passed over, however they look. */
Test(settings, the_engines_file_is_accepted_as_it_is)
{
    (void)unsetenv("WEIR_TEST_STREAM_PORT");
    assert_loads(
        "registration_namespace_grace_ms: 5000\n"
        "workers:\n"
        "  - name: iii-http\n"
        "    config: { port: 3111, cors: { allowed_origins: ['*'] } }\n"
        "  - name: iii-stream\n"
        "    image: ghcr.io/x/y\n"
        "    config:\n"
        "      port: ${WEIR_TEST_STREAM_PORT:3200}\n"
        "      host: 127.0.0.1\n"
        "      auth_function: ~\n"
        "      adapter:\n"
        "        name: kv\n"
        "        config: { store_method: in_memory, file_path: ./data, save_interval_ms: 5000,\n"
        "                  channel_size: 256 }\n"
        "  - name: iii-queue\n"
        "    config: &queue { adapter: { name: builtin } }\n"
        "  - name: iii-worker-manager\n"
        "    config:\n"
        "      host: 0.0.0.0\n"
        "      port: 49135\n"
        "      handshake_timeout_ms: 9000\n"
        "weir:\n"
        "  gateways: 3\n"
        "  admin: false\n"
        "  ring_bytes: 128 MiB\n"
        "  io: plain\n"
        "  duplicate_deliveries: true\n"
        "  run_dir: /tmp/somewhere\n");
    cr_assert_eq(settings.stream_port, 3200u);
    cr_assert_str_eq(settings.stream_host, "127.0.0.1");
    cr_assert_eq(settings.worker_port, 49135u);
    cr_assert_str_eq(settings.worker_host, "0.0.0.0");
    cr_assert_eq(settings.handshake_timeout_ms, 9000u);
    cr_assert_eq(settings.gateways, 3u);
    cr_assert_str_eq(settings.admin, "false");
    cr_assert_eq(settings.ring_bytes, 128ull << 20);
    cr_assert_eq(settings.io, SETTINGS_IO_PLAIN);
    cr_assert(settings.duplicate_deliveries);
    cr_assert_str_eq(settings.run_dir, "/tmp/somewhere");
}

Test(settings, modules_is_the_old_name_of_workers)
{
    assert_loads("modules:\n  - name: iii-stream\n    config: { port: 4000 }\n");
    cr_assert_eq(settings.stream_port, 4000u);
}

/* A manager entry that does not say `host` leaves the worker port on loopback. */
Test(settings, worker_host_stays_on_loopback_unless_said)
{
    assert_loads("workers:\n  - name: iii-worker-manager\n    config: { port: 5000 }\n");
    cr_assert_str_eq(settings.worker_host, "127.0.0.1");
}

Test(settings, variables_are_replaced_in_the_raw_text)
{
    (void)setenv("WEIR_TEST_SET", "4100", 1);
    (void)setenv("WEIR_TEST_EMPTY", "", 1);
    (void)setenv("WEIR_TEST_NESTED", "${WEIR_TEST_SET}", 1);
    (void)unsetenv("WEIR_TEST_UNSET");
    assert_loads("weir:\n"
                 "  stream_port: ${WEIR_TEST_SET:1}\n"
                 "  admin: \"${WEIR_TEST_UNSET:127.0.0.1:9}\"\n" /* a default may hold a colon */
                 "  origins: \"${WEIR_TEST_EMPTY:not used}\"\n"
                 "  subprotocols: \"${WEIR_TEST_UNSET:}\"\n"
                 "  tls_certificate: \"${WEIR_TEST_NESTED}\"\n" /* replaced once only */
                 "  tls_key: \"${}$${:x}${\"\n");               /* not variables: ordinary text */
    cr_assert_eq(settings.stream_port, 4100u);
    cr_assert_str_eq(settings.admin, "127.0.0.1:9");
    cr_assert_str_eq(settings.origins, "");
    cr_assert_str_eq(settings.subprotocols, "");
    cr_assert_str_eq(settings.tls_key, "${}$${:x}${");
    cr_assert_str_eq(settings.tls_certificate, "${WEIR_TEST_SET}");
    assert_refused("weir:\n\n# ${WEIR_TEST_UNSET}\n", 3, "`WEIR_TEST_UNSET` is not set");
}

Test(settings, what_this_version_cannot_honour_is_refused)
{
    static const char stream[] = "workers:\n  - name: iii-stream\n    config:\n      ";
    static const struct {
        const char *line;
        const char *about;
    } cases[] = {
        {"adapter: { name: redis }", "adapter redis is not supported by this version yet"},
        {"adapter: { name: bridge }", "adapter bridge is not supported by this version yet"},
        {"adapter: { name: other }", "adapter `other` is not known"},
        {"adapter: { config: {} }", "`name` of adapter is missing"},
        {"adapter: { name: kv, config: { store_method: mystery } }",
         "must be in_memory or file_based"},
        {"adapter: { name: kv, config: { save_interval_ms: soon } }",
         "`save_interval_ms` needs a whole"},
        {"adapter: { name: kv, config: { extra: 1 } }", "`extra` is not known"},
        {"adapter: kv", "`adapter` needs a mapping"},
        {"prot: 1", "`prot` is not known in iii-stream"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char text[256];
        (void)snprintf(text, sizeof text, "%s%s\n", stream, cases[i].line);
        assert_refused(text, 4, cases[i].about);
    }
}

/* ---- where items are kept (PROTOCOL 10.2, 10.3) ---- */

static void set(const char *assignment)
{
    cr_assert_eq(settings_set(&settings, assignment, &error), WEIR_OK, "%s", error.text);
}

static void assert_kept(const char *data_dir, enum settings_durability durability)
{
    cr_assert_eq(settings_resolve(&settings, &error), WEIR_OK, "%s", error.text);
    cr_assert_str_eq(settings.data_dir, data_dir);
    cr_assert_eq(settings.durability, durability, "%d", (int)settings.durability);
    struct settings once = settings;
    cr_assert_eq(settings_resolve(&settings, &error), WEIR_OK, "%s", error.text);
    cr_assert_eq(memcmp(&once, &settings, sizeof once), 0, "resolving again changed something");
}

/* A file with adapter kv and `config` in one line, on line 6. */
static const char *kv(const char *config)
{
    static char text[512];
    (void)snprintf(text, sizeof text,
                   "workers:\n- name: iii-stream\n  config:\n    adapter:\n      name: kv\n"
                   "      config: { %s }\n",
                   config);
    return text;
}

Test(settings, durability_follows_directory_and_interval)
{
    static const struct {
        const char *assignments[3];
        const char *data_dir;
        enum settings_durability durability;
    } cases[] = {
        {{NULL}, "", SETTINGS_DURABILITY_MEMORY},
        {{"durability=memory"}, "", SETTINGS_DURABILITY_MEMORY},
        {{"durability=auto", "save_interval_ms=100"}, "", SETTINGS_DURABILITY_MEMORY},
        {{"data_dir=d"}, "d", SETTINGS_DURABILITY_SYNCED},
        {{"data_dir=/d", "durability=auto"}, "/d", SETTINGS_DURABILITY_SYNCED},
        {{"data_dir=d", "durability=synced"}, "d", SETTINGS_DURABILITY_SYNCED},
        {{"data_dir=d", "durability=written"}, "d", SETTINGS_DURABILITY_WRITTEN},
        {{"data_dir=d", "durability=memory"}, "d", SETTINGS_DURABILITY_MEMORY},
        {{"data_dir=d", "save_interval_ms=5000"}, "d", SETTINGS_DURABILITY_WRITTEN},
        {{"data_dir=d", "save_interval_ms=9", NULL}, NULL, SETTINGS_DURABILITY_AUTO},
        {{"data_dir=d", "save_interval_ms=5000", "durability=synced"},
         "d",
         SETTINGS_DURABILITY_SYNCED},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        enum weir_status status = WEIR_OK;
        settings_init(&settings);
        for (size_t j = 0; j < 3 && cases[i].assignments[j] != NULL && status == WEIR_OK; j++)
            status = settings_set(&settings, cases[i].assignments[j], &error);
        cr_assert_eq(status == WEIR_OK, cases[i].data_dir != NULL, "case %zu: %s", i, error.text);
        if (status == WEIR_OK)
            assert_kept(cases[i].data_dir, cases[i].durability);
    }
}

/* covers: 10.2#1 */
Test(settings, file_based_names_the_directory_and_means_synced)
{
    assert_loads(kv("store_method: file_based, file_path: ./data/streams, channel_size: 256"));
    assert_kept("./data/streams", SETTINGS_DURABILITY_SYNCED);
}

/* covers: 10.2#1 */
Test(settings, a_save_interval_means_written)
{
    assert_loads(kv("save_interval_ms: 700, store_method: file_based, file_path: d"));
    cr_assert_eq(settings.save_interval_ms, 700u);
    assert_kept("d", SETTINGS_DURABILITY_WRITTEN);
    settings_init(&settings);
    assert_loads(kv("store_method: file_based, save_interval_ms: 700, durability: synced"));
    assert_kept("kv_store_data.db", SETTINGS_DURABILITY_SYNCED);
}

/* covers: 10.2#1 */
/* 100 ms is the engine's floor; under weir's own key a smaller one is a mistake. */
Test(settings, a_short_save_interval_of_the_adapter_is_raised)
{
    static const char *const short_ones[] = {"0", "99", "100"};
    for (size_t i = 0; i < 3; i++) {
        char config[96];
        (void)snprintf(config, sizeof config, "store_method: file_based, save_interval_ms: %s",
                       short_ones[i]);
        settings_init(&settings);
        assert_loads(kv(config));
        cr_assert_eq(settings.save_interval_ms, 100u);
    }
    assert_refused(kv("store_method: file_based, save_interval_ms: 3600001"), 6,
                   "use 100 to 3600000 ms");
    assert_refused("weir: { save_interval_ms: 99 }\n", 1, "use 100 to 3600000 ms");
}

/* covers: 10.2#1 */
Test(settings, file_based_without_a_path_takes_the_engines_default)
{
    static const char *const configs[] = {"store_method: file_based",
                                          "store_method: file_based, file_path: ~",
                                          "store_method: file_based, file_path: null"};
    for (size_t i = 0; i < sizeof configs / sizeof configs[0]; i++) {
        settings_init(&settings);
        assert_loads(kv(configs[i]));
        assert_kept("kv_store_data.db", SETTINGS_DURABILITY_SYNCED);
    }
    /* The directory may stand under `weir:`, before or behind it. */
    char text[600];
    (void)snprintf(text, sizeof text, "%sweir: { data_dir: d }\n", kv(configs[0]));
    settings_init(&settings);
    assert_loads(text);
    assert_kept("d", SETTINGS_DURABILITY_SYNCED);
    (void)snprintf(text, sizeof text, "weir: { data_dir: e }\n%s", kv(configs[0]));
    settings_init(&settings);
    assert_loads(text);
    assert_kept("e", SETTINGS_DURABILITY_SYNCED);
}

/* covers: 10.2#1 */
Test(settings, in_memory_passes_over_path_and_interval)
{
    static const char *const configs[] = {
        "store_method: in_memory, file_path: ./data, save_interval_ms: 5000",
        "file_path: ./data, save_interval_ms: 1", "store_method: ~, file_path: ''",
        "store_method: in_memory, durability: memory"};
    for (size_t i = 0; i < sizeof configs / sizeof configs[0]; i++) {
        settings_init(&settings);
        assert_loads(kv(configs[i]));
        cr_assert_eq(settings.save_interval_ms, 5000u);
        assert_kept("", SETTINGS_DURABILITY_MEMORY);
    }
}

/* The path of an adapter is on line 6; `weir:` comes behind it, on line 7. */
Test(settings, mistakes_about_the_directory_name_line_and_remedy)
{
    static const struct {
        const char *config, *weir;
        unsigned line;
        const char *about;
    } cases[] = {
        {"store_method: file_based, file_path: ''", "", 6, "`file_path` is empty"},
        {"store_method: file_based, file_path: [a]", "", 6, "`file_path` needs text"},
        {"store_method: file_based, file_path: 5", "", 6, "`file_path` needs text"},
        {"file_path: [a]", "", 6, "`file_path` needs text"},
        {"store_method: [file_based]", "", 6, "must be in_memory or file_based"},
        {"store_method: redis", "", 6, "must be in_memory or file_based"},
        {"store_method: file_based, save_interval_ms: soon", "", 6, "needs a whole number"},
        {"store_method: file_based, save_interval_ms: '200'", "", 6, "needs a whole number"},
        {"store_method: file_based, channel_size: many", "", 6, "needs a whole number"},
        {"store_method: file_based, durability: fsync", "", 6,
         "use auto, memory, written or synced"},
        {"store_method: file_based, durability: [synced]", "", 6, "needs a single value"},
        {"store_method: file_based, durabilty: synced", "", 6, "`durabilty` is not known"},
        {"store_method: file_based, file_path: a", "weir: { data_dir: b }\n", 7,
         "`data_dir` was set on line 6 already"},
        {"durability: memory", "weir: { durability: memory }\n", 7, "was set on line 6 already"},
        {"store_method: file_based, save_interval_ms: 200", "weir: { save_interval_ms: 200 }\n", 7,
         "was set on line 6 already"},
        {"store_method: file_based", "weir: { data_dir: '' }\n", 7,
         "`data_dir` is empty, but line 6 says store_method: file_based"},
        {"store_method: in_memory", "weir: { data_dir: b }\n", 6,
         "keeps nothing in the `data_dir` of line 7"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char text[600];
        (void)snprintf(text, sizeof text, "%s%s", kv(cases[i].config), cases[i].weir);
        assert_refused(text, cases[i].line, cases[i].about);
    }
}

Test(settings, assignments_win_over_the_adapter)
{
    assert_loads(kv("store_method: file_based, file_path: a, save_interval_ms: 200"));
    set("data_dir=b");
    set("durability=synced");
    assert_kept("b", SETTINGS_DURABILITY_SYNCED);
    settings_init(&settings);
    assert_loads(kv("store_method: file_based, file_path: a"));
    set("data_dir=");
    assert_kept("", SETTINGS_DURABILITY_MEMORY);
    settings_init(&settings);
    assert_loads(kv("store_method: in_memory, file_path: a"));
    set("data_dir=b");
    assert_kept("b", SETTINGS_DURABILITY_SYNCED);
}

Test(settings, sizes_and_intervals_of_the_log_are_bounded)
{
    set("log_segment_bytes=1GiB");
    set("snapshot_log_bytes=1TiB");
    cr_assert_eq(settings.snapshot_log_bytes, UINT64_C(1) << 40);
    set("snapshot_interval_ms=0");
    static const char *const bad[] = {
        "log_segment_bytes=1025MiB",      "log_segment_bytes=4MB", "snapshot_log_bytes=2TiB",
        "snapshot_log_bytes=1025 GiB",    "snapshot_log_bytes=0",  "snapshot_log_bytes=1 PiB",
        "save_interval_ms=auto",          "save_interval_ms=0",    "durability=",
        "snapshot_interval_ms=2147483648"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        cr_assert_eq(settings_set(&settings, bad[i], &error), WEIR_INVALID, "%s", bad[i]);
    cr_assert_eq(settings_set(&settings, "snapshot_log_bytes=2TiB", &error), WEIR_INVALID);
    cr_assert_not_null(strstr(error.text, "use 1 MiB to 1 TiB"), "%s", error.text);
}

/* ---- worker listeners (PROTOCOL 10.4) ---- */

static void assert_rule_text(struct settings_text text, const char *expected)
{
    struct span span = settings_text_span(&settings, text);
    cr_assert(span_equal(span, span_text(expected)), "%.*s is not %s", (int)span.bytes, span.data,
              expected);
}

/* The first entry without rbac and middleware is the plain port, wherever it stands; all others are
 * listeners. */
Test(settings, worker_manager_entries_may_repeat)
{
    assert_loads("workers:\n"
                 "  - name: iii-worker-manager\n"
                 "    config:\n"
                 "      port: 49135\n"
                 "      handshake_timeout_ms: 20000\n"
                 "      rbac:\n"
                 "        auth_function_id: app::ws-auth\n"
                 "        on_function_registration_function_id: app::on-fn\n"
                 "        on_trigger_registration_function_id: app::on-trig\n"
                 "        on_trigger_type_registration_function_id: app::on-type\n"
                 "        expose_functions:\n"
                 "          - match(\"stream::*\")\n"
                 "          - { match: \"app::public::*\", namespace: orders }\n"
                 "          - metadata: { public: true, tier: match(\"gold*\"), level: 3,\n"
                 "                        name: plain, quoted: 'true' }\n"
                 "  - name: iii-worker-manager\n"
                 "    config: { port: 50000 }\n"
                 "  - name: iii-worker-manager\n"
                 "    config: { port: 0, host: '::1', middleware_function_id: app::mw }\n"
                 "  - name: iii-worker-manager\n"
                 "    config: { port: 50002, rbac: {} }\n");
    cr_assert_eq(settings.worker_port, 50000u);
    cr_assert_str_eq(settings.worker_host, "127.0.0.1");
    cr_assert_eq(settings.listener_count, 3u);
    const struct settings_listener *listener = &settings.listeners[0];
    cr_assert(listener->has_rbac);
    cr_assert_eq(listener->port, 49135u);
    cr_assert_str_eq(listener->host, "0.0.0.0");
    cr_assert_str_eq(listener->auth_function, "app::ws-auth");
    cr_assert_str_eq(listener->function_hook, "app::on-fn");
    cr_assert_str_eq(listener->trigger_hook, "app::on-trig");
    cr_assert_str_eq(listener->trigger_type_hook, "app::on-type");
    cr_assert_eq(listener->rule_first, 0u);
    cr_assert_eq(listener->rule_count, 3u);
    assert_rule_text(settings.rules[0].match, "stream::*");
    assert_rule_text(settings.rules[0].name_space, "default");
    assert_rule_text(settings.rules[1].match, "app::public::*");
    assert_rule_text(settings.rules[1].name_space, "orders");
    cr_assert_eq(settings.rules[2].condition_count, 5u);
    static const struct {
        const char *key, *value;
        enum settings_condition_kind kind;
    } conditions[] = {{"public", "true", SETTINGS_CONDITION_LITERAL},
                      {"tier", "gold*", SETTINGS_CONDITION_PATTERN},
                      {"level", "3", SETTINGS_CONDITION_LITERAL},
                      {"name", "plain", SETTINGS_CONDITION_STRING},
                      {"quoted", "true", SETTINGS_CONDITION_STRING}};
    for (unsigned i = 0; i < 5; i++) {
        assert_rule_text(settings.conditions[i].key, conditions[i].key);
        assert_rule_text(settings.conditions[i].value, conditions[i].value);
        cr_assert_eq(settings.conditions[i].kind, conditions[i].kind, "%s", conditions[i].key);
    }
    cr_assert_not(settings.listeners[1].has_rbac);
    cr_assert_str_eq(settings.listeners[1].middleware_function, "app::mw");
    cr_assert_str_eq(settings.listeners[1].host, "::1");
    cr_assert(settings.listeners[2].has_rbac);
    cr_assert_eq(settings.listeners[2].rule_count, 0u);
    cr_assert_eq(settings_resolve(&settings, &error), WEIR_OK, "%s", error.text);
    cr_assert_eq(settings.handshake_timeout_ms, 20000u, "the longest serves every port");
    cr_assert_eq(settings_set_listener_ports(&settings, "1,2,3", &error), WEIR_OK);
    cr_assert_eq(settings.listeners[1].port, 2u);
    static const char *const bad[] = {"", "1,2", "1,2,3,4", "1,2,x", "1,2,70000", "1,,3"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        cr_assert_eq(settings_set_listener_ports(&settings, bad[i], &error), WEIR_INVALID, "%s",
                     bad[i]);
}

/* Whatever could open a door by a slip of the pen is refused instead. */
Test(settings, mistakes_in_listeners_name_line_and_remedy)
{
    static const char start[] = "workers:\n- name: iii-worker-manager\n  config:\n    ";
    static const struct {
        const char *line, *about;
    } cases[] = {
        {"rbac:", "`rbac` needs a mapping"},
        {"rbac: ~", "`rbac` needs a mapping"},
        {"rbac: yes", "`rbac` needs a mapping"},
        {"rbac: { auth: a }", "`auth` is not known in rbac"},
        {"rbac: { auth_function_id: '' }", "`auth_function_id` needs a function id"},
        {"rbac: { auth_function_id: ~ }", "`auth_function_id` needs a function id"},
        {"rbac: { auth_function_id: [a] }", "`auth_function_id` needs a function id"},
        {"middleware_function_id: ~", "`middleware_function_id` needs a function id"},
        {"rbac: { expose_functions: match(\"a\") }", "`expose_functions` needs a list"},
        {"rbac: { expose_functions: [ stream::set ] }", "not a rule"},
        {"rbac: { expose_functions: [ match(a) ] }", "not a rule"},
        {"rbac: { expose_functions: [ match(\"a\"b\") ] }", "not a rule"},
        {"rbac: { expose_functions: [ match(\"\") ] }", "an empty pattern"},
        {"rbac: { expose_functions: [ [a] ] }", "not a rule"},
        {"rbac: { expose_functions: [ {} ] }", "either `match` or `metadata`"},
        {"rbac: { expose_functions: [ { match: a, metadata: { b: 1 } } ] }", "either `match`"},
        {"rbac: { expose_functions: [ { match: a, namespace: '' } ] }", "`namespace` is blank"},
        {"rbac: { expose_functions: [ { match: a, name: b } ] }", "`name` is not known"},
        {"rbac: { expose_functions: [ { match: [a] } ] }", "`match` needs a pattern"},
        {"rbac: { expose_functions: [ { match: '' } ] }", "an empty pattern"},
        {"rbac: { expose_functions: [ { metadata: {} } ] }", "would expose everything"},
        {"rbac: { expose_functions: [ { metadata: true } ] }", "`metadata` needs a mapping"},
        {"rbac: { expose_functions: [ { metadata: { a: [1] } } ] }", "`a` of metadata needs one"},
        {"{ rbac: {}, port: 70000 }", "`port` is out of range"},
        {"{ rbac: {}, port: x }", "`port` needs a whole number"},
        {"{ rbac: {}, handshake_timeout_ms: 1 }", "`handshake_timeout_ms` is out of range"},
        {"{ rbac: {}, host: [] }", "`host` needs an IP address"},
        {"{ rbac: {}, prot: 1 }", "`prot` is not known in iii-worker-manager"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char text[256];
        (void)snprintf(text, sizeof text, "%s%s\n", start, cases[i].line);
        assert_refused(text, 4, cases[i].about);
    }
    assert_refused("workers:\n- name: iii-worker-manager\n- name: iii-worker-manager\n", 3,
                   "the first is on line 2");
}

/* Two listeners on one port would share its connections at random. */
Test(settings, listeners_do_not_share_ports)
{
    static const struct {
        const char *config, *about;
    } cases[] = {
        {"{ rbac: {} }", "`worker_port` both use port 49134"},
        {"{ port: 3112, rbac: {} }", "`stream_port` both use port 3112"},
        {"{ port: 3114, rbac: {} }", "`admin` both use port 3114"},
        {"{ port: 49135, rbac: {} }\n- name: iii-worker-manager\n  config: { port: 49135, rbac: {} "
         "}",
         "on lines 3 and 5 both use port 49135"},
        {"{ port: 49135, host: example, rbac: {} }", "not an IP address"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char text[256];
        settings_init(&settings);
        (void)snprintf(text, sizeof text, "workers:\n- name: iii-worker-manager\n  config: %s\n",
                       cases[i].config);
        assert_loads(text);
        cr_assert_eq(settings_resolve(&settings, &error), WEIR_INVALID, "%s", text);
        cr_assert_not_null(strstr(error.text, cases[i].about), "%s", error.text);
    }
    settings_init(&settings);
    assert_loads("workers:\n- name: iii-worker-manager\n  config: { port: 0, rbac: {} }\n"
                 "- name: iii-worker-manager\n  config: { port: 0, rbac: {} }\n");
    cr_assert_eq(settings_resolve(&settings, &error), WEIR_OK, "any number may pick a free one");
}

Test(settings, listeners_and_rules_are_bounded)
{
    static char text[1 << 19];
    size_t used = 0;
    for (unsigned i = 0; i <= SETTINGS_LISTENERS_MAX; i++)
        used += (size_t)snprintf(text + used, sizeof text - used,
                                 "%s- name: iii-worker-manager\n  config: { port: %u, rbac: {} }\n",
                                 i == 0 ? "workers:\n" : "", 50000 + i);
    assert_refused(text, 2 + 2 * SETTINGS_LISTENERS_MAX + 1, "more than 8 worker listeners");
    used = (size_t)snprintf(text, sizeof text,
                            "workers:\n- name: iii-worker-manager\n  config:\n    rbac:\n"
                            "      expose_functions:\n");
    size_t start_bytes = used;
    for (unsigned i = 0; i <= SETTINGS_RULES_MAX; i++)
        used += (size_t)snprintf(text + used, sizeof text - used, "      - match(\"a%u\")\n", i);
    assert_refused(text, 6 + SETTINGS_RULES_MAX, "more than 256 rules");
    used = start_bytes;
    for (unsigned i = 0; i < 20; i++) {
        used += (size_t)snprintf(text + used, sizeof text - used, "      - match(\"");
        memset(text + used, 'x', 4000);
        used += 4000;
        used += (size_t)snprintf(text + used, sizeof text - used, "\")\n");
    }
    assert_refused(text, 22, "64 KiB of their text");
}

Test(settings, mistakes_name_line_and_remedy)
{
    static const struct {
        const char *text;
        unsigned line;
        const char *about;
    } cases[] = {
        {"wokers: []\n", 1, "`wokers` is not known in the top level"},
        {"weir:\n  ring_byte: 1\n", 2, "did you mean `ring_bytes`?"},
        {"weir:\n  entirely_other: 1\n", 2, "`entirely_other` is not known"},
        {"weir:\n  gateways: many\n", 2, "needs a whole number"},
        {"weir:\n  gateways: \"2\"\n", 2, "needs a whole number"},
        {"weir:\n  gateways: -1\n", 2, "needs a whole number"},
        {"weir:\n  gateways: 1.5\n", 2, "needs a whole number"},
        {"weir:\n  gateways: 65\n", 2, "out of range; use 0 to 64"},
        {"weir:\n  gateways: [1]\n", 2, "needs a single value"},
        {"weir:\n  gateways: 99999999999999999999999\n", 2, "needs a whole number"},
        {"weir:\n  flush_interval_ms: 21\n", 2, "use 0 to 20 ms"},
        {"weir:\n  ring_bytes: 1 KiB\n", 2, "use 1 MiB to 16 GiB"},
        {"weir:\n  ring_bytes: 64 MB\n", 2, "needs a size"},
        {"weir:\n  ring_bytes: 99999999999999999 GiB\n", 2, "needs a size"},
        {"weir:\n  io: epoll\n", 2, "use auto, uring or plain"},
        {"weir:\n  auth_failure: refuse\n", 2, "use deny or allow"},
        {"weir:\n  join_gate: true\n", 2, "use closed or open"},
        {"weir:\n  duplicate_deliveries: yes\n", 2, "use true or false"},
        {"weir:\n  origins: 5\n", 2, "needs text"},
        {"weir:\n  origins: true\n", 2, "needs text"},
        {"weir:\n  run_dir:\n", 2, "needs text"},
        {"weir:\n  gateways: 1\n  gateways: 1\n", 3, "was set on line 2 already"},
        {"weir: 5\n", 1, "`weir` needs a mapping"},
        {"weir: {}\nweir: {}\n", 2, "stands twice"},
        {"workers: []\nmodules: []\n", 2, "keep only one"},
        {"workers: {}\n", 1, "needs a list"},
        {"workers:\n- 5\n", 2, "must be a mapping"},
        {"workers:\n- config: {}\n", 2, "`name` of the worker is missing"},
        {"workers:\n- name: iii-stream\n- name: iii-stream\n", 3, "stands on line 2 already"},
        {"workers:\n- name: iii-stream\n  nam: 1\n", 3, "`nam` is not known"},
        {"workers:\n- name: iii-stream\n  config: 5\n", 3, "`config` needs a mapping"},
        {"workers:\n- name: iii-stream\n  config: { port: 70000 }\n", 3, "use 0 to 65535"},
        {"workers:\n- name: iii-stream\n  config: { port: 1 }\nweir:\n  stream_port: 2\n", 5,
         "was set on line 3 already"},
        {"registration_namespace_grace_ms: soon\n", 1, "needs a whole number"},
        {"weir: [\n", 2, "not YAML"},
        {"weir: {}\n---\nweir: {}\n", 2, "second document"},
        {"? [a]\n: 1\n", 1, "a key must be plain text"},
        {"- 5\n", 1, "needs a mapping"},
        {"weir:\n  <<: *nothing\n", 2, "not YAML"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        assert_refused(cases[i].text, cases[i].line, cases[i].about);
}

/* Aliases that would unfold to 9^9 nodes, deep nesting, a huge file and a NUL: refused or passed
 * over, quickly. */
Test(settings, hostile_files_are_bounded)
{
    assert_loads("workers:\n- name: other\n  a: &a [x,x,x,x,x,x,x,x,x]\n"
                 "  b: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\n  c: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n"
                 "  d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\n  e: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\n"
                 "  f: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\n  g: [*f,*f,*f,*f,*f,*f,*f,*f,*f]\n");
    /* A mapping that contains itself must not be walked forever. */
    cr_assert_lt((int)load("weir: &w { run_dir: *w }\n"), 0);
    char deep[256];
    memset(deep, '[', 200);
    deep[200] = '\0';
    assert_refused(deep, 1, "nested deeper than 32");
    size_t bytes = SETTINGS_FILE_BYTES_MAX + 1;
    char *big = malloc(bytes);
    cr_assert_not_null(big);
    memset(big, '#', bytes);
    enum weir_status status = load_bytes(big, bytes);
    cr_assert_eq(status, WEIR_TOO_LARGE);
    cr_assert_eq(load_bytes(big, bytes - 1), WEIR_OK, "%s", error.text);
    /* A small file that grows beyond the bound by its variables. */
    memset(big, 'x', 100000);
    big[100000] = '\0';
    (void)setenv("WEIR_TEST_BIG", big, 1);
    char text[512] = "# ";
    for (int i = 0; i < 12; i++)
        (void)strcat(text, "${WEIR_TEST_BIG}");
    cr_assert_eq(load(text), WEIR_TOO_LARGE);
    free(big);
    cr_assert_lt((int)load_bytes("weir:\n  origins: \"a\\0b\"\n", 24), 0);
    cr_assert_lt((int)load_bytes("weir\0: 1\n", 9), 0);
}

Test(settings, a_file_that_is_not_there_is_a_system_error)
{
    (void)unlink(path);
    cr_assert_eq(settings_load(&settings, path, &error), WEIR_SYSTEM);
    cr_assert_not_null(strstr(error.text, path));
    cr_assert_eq(settings_load(&settings, "/tmp", &error), WEIR_INVALID);
}

Test(settings, assignments_override_and_are_checked)
{
    assert_loads("weir:\n  gateways: 3\n");
    cr_assert_eq(settings_set(&settings, "gateways=5", &error), WEIR_OK);
    cr_assert_eq(settings.gateways, 5u);
    cr_assert_eq(settings_set(&settings, "gateways=auto", &error), WEIR_OK);
    cr_assert_eq(settings.gateways, 0u);
    cr_assert_eq(settings_set(&settings, "ring_bytes=2GiB", &error), WEIR_OK);
    cr_assert_eq(settings.ring_bytes, 2ull << 30);
    cr_assert_eq(settings_set(&settings, "origins=a=b", &error), WEIR_OK);
    cr_assert_str_eq(settings.origins, "a=b");
    cr_assert_eq(settings_set(&settings, "duplicate_deliveries=true", &error), WEIR_OK);
    cr_assert(settings.duplicate_deliveries);
    cr_assert_eq(settings_set(&settings, "run_dir=5", &error),
                 WEIR_OK); /* no types on a command line */
    static const char *const bad[] = {"gateways",  "=5",      "gateway=5",    "gateways=x",
                                      "gateways=", "io=fast", "ring_bytes=1", "stream_port=65536"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        cr_assert_eq(settings_set(&settings, bad[i], &error), WEIR_INVALID, "%s", bad[i]);
        cr_assert_eq(strncmp(error.text, "--set", 5), 0, "%s", error.text);
    }
    cr_assert_eq(settings_set(&settings, "gateway=5", &error), WEIR_INVALID);
    cr_assert_not_null(strstr(error.text, "did you mean `gateways`?"), "%s", error.text);
}

static void assert_unresolved(const char *const *assignments, const char *about)
{
    settings_init(&settings);
    for (; *assignments != NULL; assignments++)
        cr_assert_eq(settings_set(&settings, *assignments, &error), WEIR_OK, "%s", error.text);
    cr_assert_eq(settings_resolve(&settings, &error), WEIR_INVALID);
    cr_assert_not_null(strstr(error.text, about), "wanted `%s` in: %s", about, error.text);
}

Test(settings, resolve_chooses_what_was_left_open)
{
    (void)setenv("XDG_RUNTIME_DIR", "/run/user/7", 1);
    cr_assert_eq(settings_resolve(&settings, &error), WEIR_OK, "%s", error.text);
    cr_assert_str_eq(settings.run_dir, "/run/user/7/weir");
    cr_assert_geq(settings.gateways, 1u);
    cr_assert_leq(settings.gateways, READERS_MAX);
    cr_assert_geq(settings.store_bytes, STORE_BYTES_MIN);
    cr_assert_leq(settings.store_bytes, STORE_BYTES_DEFAULT);
    cr_assert_eq(settings.value_bytes_max, VALUE_BYTES_MAX);
    struct settings once = settings;
    cr_assert_eq(settings_resolve(&settings, &error), WEIR_OK);
    cr_assert_eq(memcmp(&once, &settings, sizeof once), 0);

    (void)unsetenv("XDG_RUNTIME_DIR");
    settings_init(&settings);
    cr_assert_eq(settings_set(&settings, "stream_host=localhost", &error), WEIR_OK);
    cr_assert_eq(settings_set(&settings, "admin=localhost:0", &error), WEIR_OK);
    cr_assert_eq(settings_resolve(&settings, &error), WEIR_OK, "%s", error.text);
    char expected[64];
    (void)snprintf(expected, sizeof expected, "/tmp/weir-%u", (unsigned)geteuid());
    cr_assert_str_eq(settings.run_dir, expected);
    cr_assert_str_eq(settings.stream_host, "127.0.0.1");
    cr_assert_str_eq(settings.admin, "127.0.0.1:0");
}

/* A smaller ring takes the largest value down with it, unless somebody asked for that value. */
Test(settings, value_limit_follows_the_ring)
{
    cr_assert_eq(settings_set(&settings, "ring_bytes=1MiB", &error), WEIR_OK);
    cr_assert_eq(settings_resolve(&settings, &error), WEIR_OK, "%s", error.text);
    cr_assert_leq(settings.value_bytes_max + ENVELOPE_OVERHEAD_BYTES_MAX,
                  (1u << 20) / RING_RECORD_SHARE);
    assert_unresolved((const char *const[]){"ring_bytes=1MiB", "value_bytes_max=1MiB", NULL},
                      "raise `ring_bytes`");
}

Test(settings, relations_between_settings_are_checked)
{
    assert_unresolved((const char *const[]){"stream_host=example.org", NULL}, "not an IP address");
    assert_unresolved((const char *const[]){"worker_host=", NULL}, "not an IP address");
    assert_unresolved((const char *const[]){"admin=3114", NULL}, "not HOST:PORT");
    assert_unresolved((const char *const[]){"admin=there:3114", NULL}, "not an IP address");
    assert_unresolved((const char *const[]){"stream_port=5000", "worker_port=5000", NULL},
                      "both use port 5000");
    assert_unresolved((const char *const[]){"admin=127.0.0.1:3112", NULL}, "both use port 3112");
    assert_unresolved((const char *const[]){"tls_key=/x", NULL}, "`tls_certificate` is missing");
    assert_unresolved((const char *const[]){"tls_certificate=/x", NULL}, "`tls_key` is missing");
    assert_unresolved((const char *const[]){"idle_timeout_ms=20000", NULL},
                      "above `ping_interval_ms`");
    char run_dir[200] = "run_dir=/";
    memset(run_dir + 9, 'x', 150);
    run_dir[159] = '\0';
    assert_unresolved((const char *const[]){run_dir, NULL}, "shorter path");
    assert_unresolved((const char *const[]){"durability=written", NULL}, "written, which needs");
    assert_unresolved((const char *const[]){"durability=synced", NULL}, "set `data_dir`");
    assert_unresolved((const char *const[]){"log_segment_bytes=16MiB", NULL},
                      "use at least 17825792 or lower `value_bytes_max`");
    char data_dir[256] = "data_dir=/";
    memset(data_dir + 10, 'x', 200);
    data_dir[210] = '\0';
    assert_unresolved((const char *const[]){data_dir, NULL}, "shorter path");
}

/* The limits themselves are still good. */
Test(settings, a_segment_of_the_least_size_and_the_longest_directory_pass)
{
    char data_dir[256] = "data_dir=/";
    memset(data_dir + 10, 'x', 199);
    data_dir[209] = '\0';
    set(data_dir);
    set("log_segment_bytes=17825792");
    assert_kept(data_dir + strlen("data_dir="), SETTINGS_DURABILITY_SYNCED);
    settings_init(&settings);
    set("value_bytes_max=2MiB");
    set("log_segment_bytes=4MiB");
    assert_kept("", SETTINGS_DURABILITY_MEMORY);
    /* value_bytes_max follows a smaller ring, and a segment has to hold no more than that. */
    settings_init(&settings);
    set("ring_bytes=1MiB");
    set("log_segment_bytes=4MiB");
    assert_kept("", SETTINGS_DURABILITY_MEMORY);
}

Test(settings, host_and_port_are_split)
{
    char host[SETTINGS_TEXT_BYTES];
    uint16_t port;
    cr_assert_eq(settings_host_port("127.0.0.1:80", host, &port, &error), WEIR_OK);
    cr_assert_str_eq(host, "127.0.0.1");
    cr_assert_eq(port, 80);
    cr_assert_eq(settings_host_port("[::1]:65535", host, &port, &error), WEIR_OK);
    cr_assert_str_eq(host, "::1");
    cr_assert_eq(port, 65535);
    static const char *const bad[] = {"",       "x",     ":80",     "x:",     "x:65536", "x:8a",
                                      "::1:80", "[]:80", "[::1]80", "[::1]:", "x:-1"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        cr_assert_eq(settings_host_port(bad[i], host, &port, &error), WEIR_INVALID, "%s", bad[i]);
}

/* ---- auth ---- */

Test(settings, auth_function_stands_in_the_streams_entry_or_under_weir)
{
    static const char entry[] =
        "workers:\n- name: iii-stream\n  config:\n    auth_function: app::auth\n";
    assert_loads(entry);
    cr_assert_str_eq(settings.auth_function, "app::auth");
    char both[256];
    (void)snprintf(both, sizeof both, "%sweir:\n  auth_function: app::other\n", entry);
    assert_refused(both, 6, "was set on line 4 already");
    assert_refused("workers:\n- name: iii-stream\n  config:\n    auth_function: [a]\n", 4,
                   "needs a single value");
}

static void assert_token(size_t index, const char *token, const char *context)
{
    struct settings_token found = settings_token_at(&settings, index);
    cr_assert(span_equal(found.token, span_text(token)), "%.*s", (int)found.token.bytes,
              found.token.data);
    cr_assert(span_equal(found.context, span_text(context)), "%.*s", (int)found.context.bytes,
              found.context.data);
}

/* Contexts become JSON: what stands in quotes is text, plain words and numbers are what they say. */
Test(settings, tokens_and_their_contexts_are_read)
{
    (void)setenv("WEIR_TEST_TOKEN", "from-the-environment", 1);
    assert_loads(
        "weir:\n"
        "  auth_tokens:\n"
        "    one: { user: u1, admin: true, level: 3, note: '3', none: , list: [1, -2.5e3] }\n"
        "    \"two\": just text\n"
        "    ${WEIR_TEST_TOKEN}:\n"
        "    \"5\": ~\n"
        "    six: [&a {b: \"\\0\\\"\"}, *a, 0x1F, +1, .5, 1e400, True]\n"
        "    seven: 12345678901234567890\n");
    cr_assert_eq(settings_token_count(&settings), 6u);
    assert_token(0, "one",
                 "{\"user\":\"u1\",\"admin\":true,\"level\":3,\"note\":\"3\",\"none\":null,"
                 "\"list\":[1,-2.5e3]}");
    assert_token(1, "two", "\"just text\"");
    assert_token(2, "from-the-environment", "null");
    assert_token(3, "5", "null");
    assert_token(4, "six",
                 "[{\"b\":\"\\u0000\\\"\"},{\"b\":\"\\u0000\\\"\"},\"0x1F\",\"+1\",\".5\","
                 "\"1e400\",\"True\"]");
    assert_token(5, "seven", "12345678901234567890");
    /* A later file replaces the table. */
    assert_loads("weir: { auth_tokens: { other: {} } }\n");
    cr_assert_eq(settings_token_count(&settings), 1u);
    assert_token(0, "other", "{}");
    assert_loads("weir: { gateways: 1 }\n");
    cr_assert_eq(settings_token_count(&settings), 1u);
}

/* Whatever is wrong with the table: the message tells where, and never what stands there. */
Test(settings, mistakes_in_tokens_are_told_without_the_token)
{
    static const struct {
        const char *text;
        unsigned line;
        const char *about;
    } cases[] = {
        {"weir:\n  auth_tokens: SECRET\n", 2, "needs a mapping"},
        {"weir:\n  auth_tokens: [SECRET]\n", 2, "needs a mapping"},
        {"weir:\n  auth_tokens: {}\n", 2, "has no token"},
        {"weir:\n  auth_tokens:\n    'SECRET SECRET': 1\n", 3, "visible ASCII"},
        {"weir:\n  auth_tokens:\n    \"\": 1\n", 3, "visible ASCII"},
        {"weir:\n  auth_tokens:\n    [SECRET]: 1\n", 3, "visible ASCII"},
        {"weir:\n  auth_tokens:\n    SECRET: 1\n    SECRET: 2\n", 4, "stands twice"},
        {"weir:\n  auth_tokens:\n    SECRET: {[SECRET]: 1}\n", 3, "cannot be JSON"},
        {"weir:\n  auth_tokens:\n    SECRET: &a [*a]\n", 3, "levels"},
        {"weir:\n  auth_tokens:\n    SECRET: &a [*a, *a, *a]\n", 3, "levels"},
        {"weir:\n  auth_tokens: {SECRET: 1}\n  auth_tokens: {SECRET: 2}\n", 3,
         "was set on line 2 already"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        assert_refused(cases[i].text, cases[i].line, cases[i].about);
        cr_assert_null(strstr(error.text, "SECRET"), "%s", error.text);
    }
    cr_assert_eq(settings_set(&settings, "auth_tokens=SECRET", &error), WEIR_INVALID);
    cr_assert_not_null(strstr(error.text, "only stand in the file"), "%s", error.text);
    cr_assert_null(strstr(error.text, "SECRET"), "%s", error.text);
}

/* One more than the bound, and one byte more than it. */
Test(settings, tokens_are_bounded)
{
    static char text[SETTINGS_FILE_BYTES_MAX];
    int bytes = snprintf(text, sizeof text, "weir:\n  auth_tokens:\n");
    for (unsigned i = 0; i < SETTINGS_TOKENS_MAX + 1; i++)
        bytes += snprintf(text + bytes, sizeof text - (size_t)bytes, "    t%u: %u\n", i, i);
    assert_refused(text, 3 + SETTINGS_TOKENS_MAX, "more than 1024 tokens");
    (void)snprintf(text, sizeof text, "weir: { auth_tokens: { %0*u: 1 } }\n",
                   SETTINGS_TOKEN_BYTES_MAX + 1, 0u);
    assert_refused(text, 1, "visible ASCII");
    (void)snprintf(text, sizeof text, "weir: { auth_tokens: { t: '%0*u' } }\n",
                   SETTINGS_CONTEXT_BYTES_MAX - 1, 0u);
    assert_refused(text, 1, "exceeds 65536 bytes");
    (void)snprintf(text, sizeof text, "weir: { auth_tokens: { %0*u: '%0*u' } }\n",
                   SETTINGS_TOKEN_BYTES_MAX, 0u, SETTINGS_CONTEXT_BYTES_MAX - 2, 0u);
    assert_loads(text);
    cr_assert_eq(settings_token_at(&settings, 0).context.bytes, (size_t)SETTINGS_CONTEXT_BYTES_MAX);
}

static void assert_stream(const char *name, enum settings_slow slow, uint64_t lag_events)
{
    struct settings_stream stream = settings_stream_of(&settings, span_text(name));
    cr_assert_eq(stream.slow, slow, "%s", name);
    cr_assert_eq(stream.lag_events, lag_events, "%s", name);
}

/* What a stream does not say holds as for all, wherever in the file that stands. */
Test(settings, streams_differ_in_what_they_say)
{
    assert_loads("weir:\n"
                 "  streams:\n"
                 "    chat: { slow: lossless, lag_events: 5000 }\n"
                 "    \"a b\": { slow: disconnect }\n"
                 "    zz: { lag_events: 0 }\n"
                 "    cha: {}\n"
                 "  lag_events: 7\n");
    assert_stream("chat", SETTINGS_SLOW_LOSSLESS, 5000);
    assert_stream("a b", SETTINGS_SLOW_DISCONNECT, 7);
    assert_stream("zz", SETTINGS_SLOW_LATEST, 0);
    assert_stream("cha", SETTINGS_SLOW_LATEST, 7);
    assert_stream("chatter", SETTINGS_SLOW_LATEST, 7);
    assert_stream("", SETTINGS_SLOW_LATEST, 7);
    cr_assert_eq(settings.lag_events, 7u);
    cr_assert_eq(settings.slow_subscribers, SETTINGS_SLOW_LATEST);
    /* A later file replaces all of them; one that does not speak of them leaves them. */
    assert_loads(
        "weir: { streams: { other: { slow: lossless } }, slow_subscribers: disconnect }\n");
    assert_stream("other", SETTINGS_SLOW_LOSSLESS, 7);
    assert_stream("chat", SETTINGS_SLOW_DISCONNECT, 7);
    assert_loads("weir: { gateways: 1, auth_tokens: { t: 1 } }\n");
    assert_stream("other", SETTINGS_SLOW_LOSSLESS, 7);
}

Test(settings, mistakes_in_streams_are_told)
{
    static const struct {
        const char *text;
        unsigned line;
        const char *about;
    } cases[] = {
        {"weir:\n  streams: chat\n", 2, "needs a mapping"},
        {"weir:\n  streams: [chat]\n", 2, "needs a mapping"},
        {"weir:\n  streams:\n    chat: lossless\n", 3, "write for example"},
        {"weir:\n  streams:\n    chat:\n", 3, "write for example"},
        {"weir:\n  streams:\n    chat: { slow: fast }\n", 3, "`slow`"},
        {"weir:\n  streams:\n    chat: { slow: }\n", 3, "`slow`"},
        {"weir:\n  streams:\n    chat: { lag_events: 16385 }\n", 3, "`lag_events`"},
        {"weir:\n  streams:\n    chat: { lag_events: -1 }\n", 3, "`lag_events`"},
        {"weir:\n  streams:\n    chat:\n      slow: latest\n      slow: latest\n", 5, "twice"},
        {"weir:\n  streams:\n    chat: { mode: latest }\n", 3, "use one of: slow, lag_events"},
        {"weir:\n  streams:\n    [chat]: {}\n", 3, "1 to 4096 bytes"},
        {"weir:\n  streams:\n    \"\": {}\n", 3, "1 to 4096 bytes"},
        {"weir:\n  streams:\n    chat: {}\n    \"chat\": {}\n", 4, "stands twice"},
        {"weir:\n  streams: {}\n  streams: {}\n", 3, "was set on line 2 already"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        assert_refused(cases[i].text, cases[i].line, cases[i].about);
    cr_assert_eq(settings_set(&settings, "streams=chat", &error), WEIR_INVALID);
    cr_assert_not_null(strstr(error.text, "only stand in the file"), "%s", error.text);
}

/* As many as there may be, whose order in the file does not matter, and one more. */
Test(settings, streams_are_bounded)
{
    static char text[SETTINGS_FILE_BYTES_MAX];
    int bytes = snprintf(text, sizeof text, "weir:\n  streams:\n");
    for (unsigned i = 0; i < SETTINGS_STREAMS_MAX; i++)
        bytes +=
            snprintf(text + bytes, sizeof text - (size_t)bytes, "    s%u: { lag_events: %u }\n",
                     i * 37 % SETTINGS_STREAMS_MAX, i * 37 % SETTINGS_STREAMS_MAX);
    assert_loads(text);
    for (unsigned i = 0; i < SETTINGS_STREAMS_MAX; i++) {
        char name[16];
        (void)snprintf(name, sizeof name, "s%u", i);
        assert_stream(name, SETTINGS_SLOW_LATEST, i);
    }
    (void)snprintf(text + bytes, sizeof text - (size_t)bytes, "    more: {}\n");
    assert_refused(text, 3 + SETTINGS_STREAMS_MAX, "more than 256 streams");
}

Test(settings, choices_of_auth_and_gate_are_checked)
{
    static const char *const good[] = {"auth_failure=deny", "auth_failure=allow", "join_gate=open",
                                       "join_gate=closed"};
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        settings_init(&settings);
        cr_assert_eq(settings_set(&settings, good[i], &error), WEIR_OK);
        cr_assert_eq(settings_resolve(&settings, &error), WEIR_OK, "%s", error.text);
        cr_assert_eq(settings.auth_failure, i == 1 ? SETTINGS_AUTH_ALLOW : SETTINGS_AUTH_DENY);
        cr_assert_eq(settings.join_gate, i == 2 ? SETTINGS_GATE_OPEN : SETTINGS_GATE_CLOSED);
    }
    static const char *const bad[] = {"auth_failure=", "auth_failure=Deny", "join_gate=true"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        settings_init(&settings);
        cr_assert_eq(settings_set(&settings, bad[i], &error), WEIR_INVALID, "%s", bad[i]);
        cr_assert_not_null(strstr(error.text, "; use "), "%s", error.text);
    }
}

static void read_whole(FILE *file, char *out, size_t out_bytes)
{
    size_t bytes = fread(out, 1, out_bytes - 1, file);
    cr_assert_lt(bytes, out_bytes - 1);
    out[bytes] = '\0';
}

/* docs/configuration.md carries the table between two markers; `weir help settings --markdown`
 * prints it anew. */
Test(settings, the_documented_table_is_the_real_one)
{
    static char wanted[16384];
    static char document[65536];
    FILE *printed = tmpfile();
    cr_assert_not_null(printed);
    settings_print_markdown(printed);
    rewind(printed);
    read_whole(printed, wanted, sizeof wanted);
    (void)fclose(printed);
    static const char here[] = __FILE__; /* CMake compiles with whole paths */
    char document_path[512];
    int room = (int)(strrchr(here, '/') - here);
    (void)snprintf(document_path, sizeof document_path, "%.*s/../docs/configuration.md", room,
                   here);
    FILE *file = fopen(document_path, "r");
    cr_assert_not_null(file, "docs/configuration.md cannot be read");
    read_whole(file, document, sizeof document);
    (void)fclose(file);
    cr_assert_not_null(strstr(document, wanted),
                       "docs/configuration.md is out of date: replace its table with the output of "
                       "`weir help settings --markdown`");
}
