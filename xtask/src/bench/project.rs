//! Generates a C project to compile: deterministic, of the size and mix of ordinary sources.
//!
//! Each file includes the headers that most files include, keeps a hash table, parses text and
//! dispatches on it: about 300 lines, with enough for the optimiser to do. `main.c` calls one
//! function of each, so that the link is part of the work.

use std::fmt::Write;

use super::workshop::Workshop;

/// Functions of each kind in a file.
const FUNCTIONS: usize = 6;

const HEADER: &str = "\
#ifndef SHARED_H
#define SHARED_H
#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>
struct entry { struct entry *next; char *key; long value; uint32_t hash; };
struct table { struct entry **buckets; size_t size, used; };
";

/// Writes the project into a directory of the workshop: `Makefile`, `shared.h`, `main.c` and
/// `count` further files. `make -B -j2 -C DIRECTORY` builds all of it.
///
/// # Errors
/// One sentence, where a file cannot be written.
pub(super) fn write(workshop: &Workshop, directory: &str, count: usize) -> Result<(), String> {
    let mut header = HEADER.to_owned();
    let mut main = "#include \"shared.h\"\nint main(void)\n{\n\tlong sum = 0;\n".to_owned();
    let mut objects = "main.o".to_owned();
    for file in 0..count {
        // Writing to a String cannot fail.
        let _ = writeln!(header, "long unit{file}_run(const char *text);");
        let _ = writeln!(main, "\tsum += unit{file}_run(\"alpha=1;beta={file}\");");
        let _ = write!(objects, " unit{file}.o");
        workshop.write(&format!("{directory}/unit{file}.c"), &unit(file))?;
    }
    header.push_str("#endif\n");
    main.push_str("\tprintf(\"%ld\\n\", sum);\n\treturn 0;\n}\n");
    let makefile = format!(
        "OBJECTS = {objects}\nall: program\nprogram: $(OBJECTS)\n\t$(CC) -o $@ $(OBJECTS)\n\
         %.o: %.c shared.h\n\t$(CC) -O1 -Wall -c -o $@ $<\n"
    );
    workshop.write(&format!("{directory}/shared.h"), &header)?;
    workshop.write(&format!("{directory}/main.c"), &main)?;
    workshop.write(&format!("{directory}/Makefile"), &makefile)
}

/// One source file; its constants differ from those of every other.
fn unit(file: usize) -> String {
    let mut source = "#include \"shared.h\"\n\n".to_owned();
    source.push_str(&table_functions(file));
    for function in 0..FUNCTIONS {
        source.push_str(&scanner(file, function));
        source.push_str(&dispatcher(file, function));
    }
    let _ = write!(
        source,
        "long unit{file}_run(const char *text)\n{{\n\tstruct table table = {{ 0 }};\n\tlong sum = 0;\n"
    );
    for function in 0..FUNCTIONS {
        let _ = writeln!(source, "\tsum += scan{function}(&table, text, strlen(text));");
        let _ = writeln!(source, "\tsum ^= dispatch{function}(&table, (int)(sum & 15), sum);");
    }
    source.push_str("\tdrop(&table);\n\treturn sum;\n}\n");
    source
}

fn table_functions(file: usize) -> String {
    let multiplier = 16_777_619 + 2 * file;
    format!(
        "static uint32_t hash(const char *key, size_t length)
{{
\tuint32_t value = 2166136261u;
\tfor (size_t i = 0; i < length; i++)
\t\tvalue = (value ^ (unsigned char)key[i]) * {multiplier}u;
\treturn value;
}}

static int grow(struct table *table)
{{
\tsize_t size = table->size ? table->size * 2 : 8;
\tstruct entry **buckets = calloc(size, sizeof(*buckets));
\tif (!buckets)
\t\treturn -ENOMEM;
\tfor (size_t i = 0; i < table->size; i++) {{
\t\tstruct entry *entry = table->buckets[i];
\t\twhile (entry) {{
\t\t\tstruct entry *next = entry->next;
\t\t\tentry->next = buckets[entry->hash & (size - 1)];
\t\t\tbuckets[entry->hash & (size - 1)] = entry;
\t\t\tentry = next;
\t\t}}
\t}}
\tfree(table->buckets);
\ttable->buckets = buckets;
\ttable->size = size;
\treturn 0;
}}

static struct entry *lookup(struct table *table, const char *key, size_t length, int create)
{{
\tuint32_t value = hash(key, length);
\tstruct entry *entry;
\tif (table->used >= table->size && grow(table))
\t\treturn NULL;
\tfor (entry = table->buckets[value & (table->size - 1)]; entry; entry = entry->next)
\t\tif (entry->hash == value && !strncmp(entry->key, key, length) && !entry->key[length])
\t\t\treturn entry;
\tif (!create || !(entry = calloc(1, sizeof(*entry))))
\t\treturn NULL;
\tif (!(entry->key = strndup(key, length))) {{
\t\tfree(entry);
\t\treturn NULL;
\t}}
\tentry->hash = value;
\tentry->next = table->buckets[value & (table->size - 1)];
\ttable->buckets[value & (table->size - 1)] = entry;
\ttable->used++;
\treturn entry;
}}

static void drop(struct table *table)
{{
\tfor (size_t i = 0; i < table->size; i++)
\t\twhile (table->buckets[i]) {{
\t\t\tstruct entry *entry = table->buckets[i];
\t\t\ttable->buckets[i] = entry->next;
\t\t\tfree(entry->key);
\t\t\tfree(entry);
\t\t}}
\tfree(table->buckets);
}}

"
    )
}

fn scanner(file: usize, function: usize) -> String {
    let (start, separator) = (file + 3 * function, ['=', ':', '>', '~', '/', '|'][function % 6]);
    format!(
        "static long scan{function}(struct table *table, const char *text, size_t length)
{{
\tlong total = {start};
\tsize_t begin = 0;
\tfor (size_t i = 0; i <= length; i++) {{
\t\tconst char *equals;
\t\tstruct entry *entry;
\t\tif (i < length && text[i] != ';')
\t\t\tcontinue;
\t\tequals = memchr(text + begin, '{separator}', i - begin);
\t\tif (equals && (entry = lookup(table, text + begin, (size_t)(equals - text) - begin, 1))) {{
\t\t\tlong number = 0;
\t\t\tfor (const char *digit = equals + 1; isdigit((unsigned char)*digit); digit++)
\t\t\t\tnumber = number > LONG_MAX / 20 ? LONG_MAX : number * 10 + (*digit - '0');
\t\t\tentry->value += number;
\t\t\ttotal += entry->value % {modulus};
\t\t}}
\t\tbegin = i + 1;
\t}}
\treturn total;
}}

",
        modulus = 97 + file * 7 + function
    )
}

fn dispatcher(file: usize, function: usize) -> String {
    let mut source = format!(
        "static long dispatch{function}(struct table *table, int verb, long argument)
{{
\tchar text[64];
\tswitch (verb) {{
"
    );
    for case in 0..10 {
        let (first, second) = (file * 31 + case * 7 + function, case % 5 + 1);
        let action = match case % 4 {
            0 => format!("argument = (argument << {second}) ^ {first};"),
            1 => format!("for (int i = 0; i < {first} % 17; i++) argument += i * {second};"),
            2 => format!(
                "snprintf(text, sizeof(text), \"%ld:{first}\", argument); \
                 argument += (long)hash(text, strlen(text));"
            ),
            _ => format!("if (argument > {first}) argument /= {second}; else argument += {first};"),
        };
        let _ = write!(source, "\tcase {case}:\n\t\t{action}\n\t\tbreak;\n");
    }
    source
        .push_str("\tdefault:\n\t\targument -= (long)table->used;\n\t}\n\treturn argument;\n}\n\n");
    source
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_of_ordinary_size_and_differ() {
        let lines = unit(0).lines().count();
        assert!((250..600).contains(&lines), "{lines} lines");
        assert_ne!(unit(0), unit(1));
        assert_eq!(unit(2), unit(2));
    }
}
