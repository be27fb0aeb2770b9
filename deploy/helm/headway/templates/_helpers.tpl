{{- define "headway.name" -}}
{{- if contains "headway" .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-headway" .Release.Name | trunc 40 | trimSuffix "-" }}{{ end -}}
{{- end }}

{{/* Takes (root, part). */}}
{{- define "headway.selector" -}}
app.kubernetes.io/name: headway
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "headway.labels" -}}
{{ include "headway.selector" . }}
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ (index . 0).Release.Service }}
helm.sh/chart: {{ (index . 0).Chart.Name }}-{{ (index . 0).Chart.Version }}
{{- end }}

{{/* Takes (root, the Dockerfile's target). */}}
{{- define "headway.image" -}}
{{- $images := (index . 0).Values.images -}}
{{- with $images.registry }}{{ . }}/{{ end }}headway-{{ index . 1 }}:{{ $images.tag | default (index . 0).Chart.AppVersion }}
{{- end }}

{{- define "headway.podSecurity" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- with .Values.images.pullSecrets }}
imagePullSecrets: {{ toJson . }}
{{- end }}
{{- end }}

{{- define "headway.containerSecurity" -}}
securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
{{- end }}

{{/* Five seconds before SIGTERM in which endpoints are taken out, and five after the drain. */}}
{{- define "headway.graceS" -}}
{{- if le (float64 .Values.drainS) (float64 .Values.maxDeadlineS) }}
{{- fail (printf "drainS (%v) must be above maxDeadlineS (%v): else admitted requests are cut when a pod stops" .Values.drainS .Values.maxDeadlineS) }}
{{- end }}
{{- add 10 (ceil .Values.drainS) }}
{{- end }}

{{- define "headway.preStop" -}}
lifecycle: {preStop: {exec: {command: [sleep, "5"]}}}
{{- end }}

{{/* Variables that all of Headway's own containers have. */}}
{{- define "headway.env" -}}
- {name: HEADWAY_LOG_LEVEL, value: {{ .Values.logLevel | quote }}}
- {name: HEADWAY_MAX_DEADLINE_S, value: {{ .Values.maxDeadlineS | quote }}}
- {name: HEADWAY_DRAIN_S, value: {{ .Values.drainS | quote }}}
{{- with .Values.otlpEndpoint }}
- {name: HEADWAY_OTLP_ENDPOINT, value: {{ . | quote }}}
{{- end }}
{{- end }}

{{/* Whether calls inside the mesh are encrypted: "true" or nothing. Both secrets belong together. */}}
{{- define "headway.meshTls" -}}
{{- $mesh := .Values.tls.mesh }}
{{- if ne (empty $mesh.workersSecret) (empty $mesh.routersSecret) }}
{{- fail "tls.mesh: workersSecret and routersSecret are set together or not at all" }}
{{- end }}
{{- if $mesh.workersSecret }}true{{ end }}
{{- end }}

{{/* What a server inside the mesh shows, and asks of its callers. */}}
{{- define "headway.meshServerEnv" -}}
{{- if include "headway.meshTls" . }}
- {name: HEADWAY_TLS_CERT, value: /tls/tls.crt}
- {name: HEADWAY_TLS_KEY, value: /tls/tls.key}
- {name: HEADWAY_TLS_CLIENT_CA, value: /tls/ca.crt}
{{- end }}
{{- end }}

{{/* Takes (root, port, the name in the certificate). Kubernetes' own gRPC probe knows no TLS. */}}
{{- define "headway.meshProbe" -}}
{{- if include "headway.meshTls" (index . 0) -}}
exec: {command: [headway, health, "127.0.0.1:{{ index . 1 }}", --ca, /tls/ca.crt, --cert, /tls/tls.crt, --key, /tls/tls.key, --server-name, {{ index . 2 }}]}
timeoutSeconds: 5
{{- else -}}
grpc: {port: {{ index . 1 }}}
timeoutSeconds: 3
{{- end }}
{{- end }}

{{/* As the last, for routers; where callers must show certificates that are not ours to have, that it accepts is enough. */}}
{{- define "headway.frontProbe" -}}
{{- if .Values.tls.front.clientCa -}}
tcpSocket: {port: 50050}
timeoutSeconds: 3
{{- else if .Values.tls.front.secret -}}
exec: {command: [headway, health, "127.0.0.1:50050", --ca, /tls/front/ca.crt, --server-name, {{ include "headway.host" (list . "router") }}]}
timeoutSeconds: 5
{{- else -}}
grpc: {port: 50050}
timeoutSeconds: 3
{{- end }}
{{- end }}

{{/* Takes (root, part): the service's name inside the cluster, which certificates carry. */}}
{{- define "headway.host" -}}
{{ include "headway.name" (index . 0) }}-{{ index . 1 }}.{{ (index . 0).Release.Namespace }}.svc
{{- end }}

{{/* All workers, as routers take them. */}}
{{- define "headway.workers" -}}
{{- $root := . }}
{{- $found := list }}
{{- range $pool, $spec := .Values.pools }}
{{- range $spec.workers }}
{{- $found = append $found (printf "%s=%s:%v" .kind (include "headway.host" (list $root $pool)) .port) }}
{{- end }}
{{- end }}
{{- if not $found }}{{ fail "pools: name at least one pool with a worker" }}{{ end }}
{{- join "," $found }}
{{- end }}

{{/* Takes a pool: its workers' kinds, comma-separated. */}}
{{- define "headway.kinds" -}}
{{- $kinds := list }}
{{- range .workers }}{{ $kinds = append $kinds .kind }}{{ end }}
{{- join "," $kinds }}
{{- end }}

{{/* Whether the chart runs the store itself: "true" or nothing. */}}
{{- define "headway.ownRedis" -}}
{{- if and .Values.redis.url .Values.redis.urlSecret.name }}{{ fail "redis: set url or urlSecret.name, not both" }}{{ end }}
{{- if and .Values.prefixCache.enabled (not .Values.redis.url) (not .Values.redis.urlSecret.name) }}true{{ end }}
{{- end }}

{{/* The variable NAME with the address of the store: takes (root, NAME). */}}
{{- define "headway.redisEnv" -}}
{{- $redis := (index . 0).Values.redis }}
{{- if $redis.urlSecret.name -}}
- {name: {{ index . 1 }}, valueFrom: {secretKeyRef: {name: {{ $redis.urlSecret.name }}, key: {{ $redis.urlSecret.key }}}}}
{{- else -}}
- {name: {{ index . 1 }}, value: {{ $redis.url | default (printf "redis://%s:6379" (include "headway.host" (list (index . 0) "redis"))) | quote }}}
{{- end }}
{{- end }}

{{/* The store in which routers count quotas together, where they do. */}}
{{- define "headway.quotaStoreEnv" -}}
{{- $store := .Values.auth.quotaStore }}
{{- $set := compact (list (ternary "redis" "" $store.redis) $store.url $store.urlSecret.name) }}
{{- if gt (len $set) 1 }}{{ fail "auth.quotaStore: set one of redis, url and urlSecret.name" }}{{ end }}
{{- if and $set (not .Values.auth.quotasConfigMap) }}{{ fail "auth.quotaStore needs auth.quotasConfigMap: there is nothing to count" }}{{ end }}
{{- if $store.redis }}
{{- if not (or (include "headway.ownRedis" .) .Values.redis.url .Values.redis.urlSecret.name) }}
{{- fail "auth.quotaStore.redis: there is none; set redis.url or redis.urlSecret, or enable prefixCache" }}
{{- end }}
{{- include "headway.redisEnv" (list . "HEADWAY_QUOTA_STORE") }}
{{- else if $store.urlSecret.name -}}
- {name: HEADWAY_QUOTA_STORE, valueFrom: {secretKeyRef: {name: {{ $store.urlSecret.name }}, key: {{ $store.urlSecret.key }}}}}
{{- else if $store.url -}}
- {name: HEADWAY_QUOTA_STORE, value: {{ $store.url | quote }}}
{{- end }}
{{- end }}

{{/* Takes (root, part). Nodes are emptied one pod of a part at a time. */}}
{{- define "headway.disruptionBudget" -}}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ include "headway.name" (index . 0) }}-{{ index . 1 }}
  labels: {{- include "headway.labels" . | nindent 4 }}
spec:
  maxUnavailable: 1
  selector:
    matchLabels: {{- include "headway.selector" . | nindent 6 }}
{{- end }}

{{/* Takes (root, part). Like pods are kept on different nodes where there are such. */}}
{{- define "headway.spread" -}}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "headway.selector" . | nindent 8 }}
{{- end }}
