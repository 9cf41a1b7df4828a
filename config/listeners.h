/* config/listeners.h -- private to config/: worker listeners beside the plain one, and their rules.
 *
 * Process:  any, before its loop runs.
 * Memory:   plain values in struct settings; texts are copied into settings.rule_text.
 * Errors:   FULL when a bound of settings.h is used up; INVALID for what cannot be a rule. The
 *           caller knows the line and writes the sentence.
 */
#ifndef WEIR_CONFIG_LISTENERS_H
#define WEIR_CONFIG_LISTENERS_H

#include "config/settings.h"

/* Forget all of them: a file that names listeners replaces those of an earlier one. */
void listeners_clear(struct settings *settings);
/* Defaults, to be filled in; NULL: SETTINGS_LISTENERS_MAX are there. Rules added afterwards are its
 * own. */
struct settings_listener *listeners_add(struct settings *settings);
/* A rule of the listener added last, for functions of `name_space`; *rule is to be filled in. */
enum weir_status listeners_add_rule(struct settings *settings, const char *name_space,
                                    struct settings_rule **rule) WEIR_MUST_CHECK;
enum weir_status listeners_set_match(struct settings *settings, struct settings_rule *rule,
                                     struct span pattern) WEIR_MUST_CHECK;
/* A condition of the rule added last. `text` is the value as it stands in the file: match("..."),
 * or a scalar; when it is plain, numbers, booleans and null are themselves, all else is a string. */
enum weir_status listeners_add_condition(struct settings *settings, struct settings_rule *rule,
                                         const char *key, const char *text,
                                         bool is_plain) WEIR_MUST_CHECK;
/* The pattern of `match("...")`; false when `text` is anything else. */
bool listeners_read_match(const char *text, struct span *pattern);

#endif
