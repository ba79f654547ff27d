{{- define "egret.name" -}}
{{- default .Release.Name .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "egret.controllerAccount" -}}
{{- default (printf "%s-controller" (include "egret.name" .)) .Values.controller.serviceAccount.name -}}
{{- end -}}

{{- define "egret.agentAccount" -}}
{{- default (printf "%s-agent" (include "egret.name" .)) .Values.agent.serviceAccount.name -}}
{{- end -}}

{{- define "egret.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ default $.Chart.AppVersion .tag }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What pods are selected by: never changes between versions. */}}
{{- define "egret.selector" -}}
app.kubernetes.io/name: egret
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* metadata of an object: call with root, name, component, cluster (no namespace), annotations. */}}
{{- define "egret.metadata" -}}
name: {{ .name }}
{{- if not .cluster }}
namespace: {{ .root.Release.Namespace }}
{{- end }}
labels:
  {{- include "egret.labels" . | nindent 2 }}
  {{- with .labels }}{{ toYaml . | nindent 2 }}{{ end }}
{{- with merge (dict) (default (dict) .annotations) .root.Values.annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "egret.labels" -}}
{{ include "egret.selector" . }}
app.kubernetes.io/part-of: egret
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
{{- with .root.Values.labels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Arguments that controller and agents share. */}}
{{- define "egret.settings" -}}
- --source=kube
- --log-format={{ .Values.log.format }}
- --unpooled-addresses={{ include "egret.unpooledAddresses" . }}
- --hold-down-secs={{ .Values.settings.holdDownSeconds }}
{{- range .Values.settings.neverDestinations }}
- --never-destination={{ . }}
{{- end }}
{{- range .Values.settings.serviceCidrs }}
- --service-cidr={{ . }}
{{- end }}
{{- with .Values.frontEnds }}
{{- if .enabled }}
- --front-end={{ join "," .enabled }}
{{- if .adoptAll }}
- --front-end-adopt-all
{{- end }}
- --front-end-admin-namespace={{ join "," .adminNamespaces }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "egret.unpooledAddresses" -}}
{{- default (ternary "Allow" "Deny" (not (empty .Values.frontEnds.enabled))) .Values.settings.unpooledAddresses -}}
{{- end -}}

{{/* Environment that controller, agents and the uninstaller share. */}}
{{- define "egret.environment" -}}
- name: EGRET_LOG
  value: {{ .Values.log.level | quote }}
{{- with .Values.apiServer.host }}
- name: KUBERNETES_SERVICE_HOST
  value: {{ . | quote }}
{{- end }}
{{- with .Values.apiServer.port }}
- name: KUBERNETES_SERVICE_PORT
  value: {{ . | quote }}
{{- end }}
{{- end -}}

{{- define "egret.pullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* A container that needs nothing of the node. */}}
{{- define "egret.confined" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- define "egret.confinedPod" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "egret.probes" -}}
livenessProbe:
  httpGet: {path: /healthz, port: http}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /readyz, port: http}
  periodSeconds: 5
  timeoutSeconds: 5
{{- end -}}
