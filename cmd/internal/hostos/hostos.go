// Package hostos is what the programs ask of the system that they run on.
package hostos
