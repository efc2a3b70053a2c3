// Command coredns is CoreDNS with the plugins the local cluster's Corefile names and no others.
package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"

	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/health"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/ready"
	_ "github.com/coredns/coredns/plugin/template"
)

// The order is the order in which a query passes the plugins.
var directives = []string{"bind", "health", "ready", "errors", "kubernetes", "template"}

func main() {
	dnsserver.Directives = directives
	coremain.Run()
}
