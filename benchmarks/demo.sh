#!/bin/sh
# `make demo`: enroll classes, ask about other photos of them, say what to type next.
set -eu
BIN=${BIN:-.venv/bin}
PATH="$BIN:$PATH"
export FEWSHOT_INDEX=indexes/demo

if [ -n "${FEWSHOT_DATA:-}" ]; then data=$FEWSHOT_DATA
elif [ -d ../shared/data/fieldleaf ]; then data=../shared/data/fieldleaf
else
    data=sample-data
    [ -d "$data/support" ] || fewshot sample-data "$data"
fi
[ -d "$data/novel/support" ] && data=$data/novel
if [ ! -d "$data/support" ] || [ ! -d "$data/query" ]; then
    echo "error: $data holds no support/ and query/ folders with one folder a class in each." >&2
    echo "hint:  set FEWSHOT_DATA to a folder that does, or unset it for rendered sample pictures." >&2
    exit 1
fi

echo
echo "1. Enroll: every folder in $data/support is a class"
fewshot enroll --each "$data/support"

echo
echo "2. Query: two photos of each class that were not enrolled"
set --
for class in "$data"/query/*/; do
    n=0
    for photo in "$class"*; do
        [ "$n" -lt 2 ] || break
        set -- "$@" "$photo"
        n=$((n + 1))
    done
done
fewshot query --top 2 --nearest 2 "$@"

cat <<EOF

3. Now your own. The index of this demo is $FEWSHOT_INDEX:
     export PATH="\$PWD/$BIN:\$PATH"
     fewshot enroll LABEL FOLDER      a new class, from 5 to 20 photos of it (into indexes/default)
     fewshot query PHOTO...           recognise photos
     fewshot inspect --index demo     which classes are easily confused, which photos look mislabelled
     fewshot --help                   everything else
EOF
