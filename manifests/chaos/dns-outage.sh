#!/bin/sh
# Takes the cluster's DNS away, and brings it back:
#   manifests/chaos/dns-outage.sh start
#   manifests/chaos/dns-outage.sh stop
# CoreDNS is scaled to 0. The number of its replicas stays on the Deployment as an annotation, so that `stop` works from any
# machine, also after this one was lost. For test clusters: while it lasts, no pod of the cluster finds a Service.
set -eu
deployment="${DEPLOYMENT:-deployment/coredns}"
annotation=podopsy-replicas-before-outage
kubectl() { command kubectl --namespace "${NAMESPACE:-kube-system}" "$@"; }
before() { kubectl get "$deployment" --output "jsonpath={.metadata.annotations.$annotation}"; }

case "${1:-}" in
start)
    # Run twice, it must not note 0 as the number to go back to.
    if [ -n "$(before)" ]; then
        echo "the outage has begun already; '$0 stop' ends it" >&2
        exit 1
    fi
    replicas=$(kubectl get "$deployment" --output 'jsonpath={.spec.replicas}')
    kubectl annotate "$deployment" "$annotation=$replicas"
    kubectl scale "$deployment" --replicas=0
    echo "the cluster has no DNS; '$0 stop' brings back $replicas replicas"
    ;;
stop)
    replicas=$(before)
    if [ -z "$replicas" ]; then
        echo "no outage was begun here" >&2
        exit 1
    fi
    kubectl scale "$deployment" --replicas="$replicas"
    kubectl annotate "$deployment" "$annotation-"
    kubectl rollout status "$deployment" --timeout=120s
    ;;
*)
    echo "usage: $0 start|stop" >&2
    exit 2
    ;;
esac
