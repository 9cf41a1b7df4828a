#include <stdio.h>
#include <string.h>

#include "cli/command.h"
#include "config/settings.h"

static const char help_all[] =
    "weir -- a real-time stream server\n"
    "\n"
    "  weir serve [--config FILE] [--gateways N] [--set KEY=VALUE]...   run broker and gateways\n"
    "  weir drain [--gateway N]                                         restart gateways one after "
    "the "
    "other, nothing lost\n"
    "  weir trigger FUNCTION [KEY=VALUE... | JSON]                      call a function\n"
    "  weir tail STREAM GROUP [ITEM]                                    watch a group or an item "
    "live\n"
    "  weir log verify|dump|export|import|repair DIR                    look after a log that no "
    "broker is using\n"
    "  weir help [COMMAND | settings]                                   more on one of these\n"
    "  weir version\n"
    "\n"
    "Try it, each line in a terminal of its own:\n"
    "  weir serve\n"
    "  weir tail chat room-1\n"
    "  weir trigger stream::set stream_name=chat group_id=room-1 item_id=m1 "
    "data='{\"text\":\"hi\"}'\n"
    "  weir trigger stream::list stream_name=chat group_id=room-1\n"
    "\n"
    "Exit status: 0 done, 1 failed, 2 the command line is wrong.\n";

static const char help_serve[] =
    "weir serve [--config FILE] [--gateways N] [--set KEY=VALUE]...\n"
    "\n"
    "Starts one broker and N gateways (one per core when nothing is said), restarts what dies, and "
    "stops them all on\n"
    "SIGTERM or SIGINT. When every listener is open it prints one line:\n"
    "  weir: ready stream=HOST:PORT worker=HOST:PORT gateways=N\n"
    "\n"
    "  --config FILE     YAML; the iii engine's file is accepted as it is (docs/configuration.md)\n"
    "  --gateways N      the same as --set gateways=N\n"
    "  --set KEY=VALUE   any setting of `weir help settings`; wins over the file\n"
    "\n"
    "Examples:\n"
    "  weir serve\n"
    "  weir serve --gateways 2 --set stream_port=8080\n"
    "  weir serve --config config.yaml --set run_dir=/run/weir\n";

static const char help_drain[] =
    "weir drain [--gateway N] [--run-dir DIR | --config FILE]\n"
    "\n"
    "Restarts the gateways of a running `weir serve`, one after the other: each sends its clients "
    "away "
    "over drain_ms\n"
    "(close 1012, with when to come back) while the others serve, ends, is started again, and is "
    "waited for before the\n"
    "next one's turn. Clients that resume lose nothing. The programs are started from where they "
    "are "
    "on disk, so this is\n"
    "also how a new version gets in (docs/operations.md). Interrupted, it ends with the gateway at "
    "hand.\n"
    "\n"
    "  --gateway N      only this one, from 0 on\n"
    "  --run-dir DIR    the server's run_dir\n"
    "  --config FILE    take run_dir from the server's configuration\n"
    "\n"
    "Exit status: 0 all are back; 1 one had to be killed, or did not come back.\n"
    "\n"
    "Examples:\n"
    "  weir drain\n"
    "  weir drain --gateway 0 --run-dir /run/weir\n";

static const char help_trigger[] =
    "weir trigger FUNCTION [KEY=VALUE... | JSON | -]\n"
    "\n"
    "Calls any function of the server or of a worker and prints its result as JSON. A VALUE that "
    "is JSON is passed as\n"
    "JSON, anything else as a string; write KEY='\"5\"' for the string 5. `-` reads the JSON from "
    "standard input. An error\n"
    "goes to stderr as `code: message`, and the exit status is 1.\n"
    "\n"
    "  --timeout-ms N   how long to wait for the answer (30000)\n"
    "  --socket PATH    the gateway's socket; else $WEIR_SOCKET\n"
    "  --run-dir DIR    the server's run_dir, which holds weir.sock\n"
    "  --config FILE    take run_dir from the server's configuration\n"
    "\n"
    "Examples:\n"
    "  weir trigger stream::set stream_name=chat group_id=room-1 item_id=m1 "
    "data='{\"text\":\"hi\"}'\n"
    "  weir trigger stream::get "
    "'{\"stream_name\":\"chat\",\"group_id\":\"room-1\",\"item_id\":\"m1\"}'\n"
    "  weir trigger engine::functions::list\n";

static const char help_tail[] =
    "weir tail STREAM GROUP [ITEM]\n"
    "\n"
    "Prints one line per event of a group, or of one item: time, kind, item, data. The first is "
    "`sync`, what is there\n"
    "already. Reconnects by itself and says so on stderr.\n"
    "\n"
    "  --url URL    ws:// or wss:// address of the stream port (ws://127.0.0.1:3112)\n"
    "  --json       the server's envelopes as they are, one per line\n"
    "  --count N    stop after N events\n"
    "\n"
    "Examples:\n"
    "  weir tail chat room-1\n"
    "  weir tail host cpu --json --count 10\n"
    "  weir tail chat room-1 m1 --url wss://example.org/stream\n";

static const char help_log[] =
    "weir log verify [DIR]\n"
    "weir log dump   [DIR] [--stream S] [--group G] [--from FRAME]\n"
    "weir log export [DIR] [--stream S] [--group G] > ITEMS.jsonl\n"
    "weir log import [DIR] < ITEMS.jsonl\n"
    "weir log repair [DIR] --cut-at SEGMENT:OFFSET [--yes]\n"
    "\n"
    "Looks after the log in DIR, the server's data_dir. No broker may be using it: stop it first, "
    "or "
    "copy the directory\n"
    "and use the copy. Only `import` and `repair` change anything.\n"
    "\n"
    "  verify   reads all that a start would read, checks every byte, and says what is there. Exit "
    "status 0: sound,\n"
    "           an interrupted last write included, which the next start cuts off. 1: damaged; "
    "file "
    "and offset are named\n"
    "  dump     the records of snapshot and log, one line of JSON each, in order; stops at damage\n"
    "  export   the items as they are at the log's end, one line of JSON each; needs memory for "
    "all "
    "that it exports\n"
    "  import   makes a new log of such lines, in a directory that has none; needs memory for all "
    "items. A line that is\n"
    "           not an item is named, and nothing is made\n"
    "  repair   gives up everything from OFFSET of a segment on, and all later segments. Says what "
    "will be lost, and asks\n"
    "\n"
    "  --stream S, --group G       only these\n"
    "  --from FRAME                begin at this frame of the log; leaves out the snapshot\n"
    "  --cut-at SEGMENT:OFFSET     the place, as `verify` names it: 7:8192, or "
    "log-00000000000000000007:8192\n"
    "  --yes                       do not ask\n"
    "  --config FILE               take DIR from the server's configuration\n"
    "  --quiet                     no progress bar and no description, only what is wrong\n"
    "\n"
    "Examples:\n"
    "  weir log verify /var/lib/weir && cp -a /var/lib/weir /backup/weir\n"
    "  weir log dump /var/lib/weir --stream chat | tail -n 20\n"
    "  weir log export /var/lib/weir --stream chat > chat.jsonl\n"
    "  weir log import /var/lib/weir-new < chat.jsonl\n"
    "  weir log repair /var/lib/weir --cut-at 7:8192\n";

static const struct {
    const char *topic;
    const char *text;
} help_topics[] = {{"serve", help_serve},
                   {"drain", help_drain},
                   {"trigger", help_trigger},
                   {"tail", help_tail},
                   {"log", help_log}};

bool help_print(const char *topic)
{
    if (topic == NULL) {
        (void)fputs(help_all, stdout);
        return true;
    }
    if (strcmp(topic, "settings") == 0) {
        (void)printf(
            "Settings for --set KEY=VALUE, and for `weir:` in the configuration file:\n\n");
        settings_print_help(stdout);
        return true;
    }
    for (size_t i = 0; i < sizeof help_topics / sizeof help_topics[0]; i++) {
        if (strcmp(topic, help_topics[i].topic) == 0) {
            (void)fputs(help_topics[i].text, stdout);
            return true;
        }
    }
    return false;
}
