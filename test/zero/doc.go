// Package zero tests the one promise that everything else serves: once a logout
// has answered, no replica accepts that login's tokens again.
//
// Its test runs the program itself, three processes and more on one Redis, logs
// thousands of sessions out through whichever replica, asks all replicas the
// instant the answer is there, and meanwhile pauses Redis and replicas, kills
// replicas and adds others. What was asked and answered when is a [History],
// which is judged by porcupine against a model of one session, and once more by
// plain counting.
//
// The history is a package of its own so that others can judge theirs by it, and
// show that it catches what it is meant to catch.
package zero
