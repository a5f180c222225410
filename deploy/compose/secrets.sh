#!/bin/sh
# Makes, once, the secrets that no file of the repository holds: Latchkey's root
# secret, Redis's password, Grafana's. They stay in the volume they are made in, for the
# group this runs as: the containers that see the volume run as several users of it.
#
#   secrets.sh FOLDER REDIS_HOST:PORT
set -eu
cd "$1"

random() { head -c "$1" /dev/urandom | od -An -v -tx1 | tr -d ' \n'; }

# keep NAME: what comes from standard input, unless it is there; whole or not at all.
keep() {
	[ -s "$1" ] && return
	cat >"$1.new"
	chmod 0440 "$1.new"
	mv "$1.new" "$1"
}

random 48 | keep latchkey
random 24 | keep grafana
random 24 | keep redis
printf 'redis://latchkey:%s@%s/0' "$(cat redis)" "$2" | keep redis_url
# Latchkey's own keys alone, and nothing that an operator would do.
printf 'user default off\nuser latchkey on >%s ~lk:* &* +@all -@admin -@dangerous +info\n' "$(cat redis)" | keep redis.acl
