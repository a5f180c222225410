// Pinned compose-go, the parser of Docker Compose, with which the tests of
// deploy/compose read its file. A module of its own, so that nothing of it appears
// among the dependencies of the program.
module github.com/latchkey-auth/latchkey/tools/compose

go 1.26.0
